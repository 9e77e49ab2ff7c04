"""Server algorithms, one a file."""
