"""Adversarial training, one method a file: what a client makes of a batch before its local step."""
