"""Gradient estimators, one a file."""
