"""Accuracy against the bytes that clients send; see `experiments.one_byte.study`."""
