"""Rules by which clients step, one a file."""
