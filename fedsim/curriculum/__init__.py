"""Curricula: in which order, and how soon, examples or clients are learnt from."""
