"""Search with values alone, in the shape of a Flower quickstart."""
