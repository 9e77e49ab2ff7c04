"""Batch normalisation among clients that read the same things with unlike sensors."""
