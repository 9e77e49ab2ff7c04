"""Apps of the shapes that Flower's quickstarts have, each with data and an outcome that can be reckoned."""
