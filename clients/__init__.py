"""Client algorithms, one a file."""
