"""Handwritten digits of few classes a client, and what strategies of ours need of a client's training."""
