"""What mods do to replies, in the shape of a Flower quickstart."""
