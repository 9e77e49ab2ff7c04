"""A name."""

NAME = "fedavg"
