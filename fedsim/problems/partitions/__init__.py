"""Partitions: which client has which examples."""
