"""Softmax regression in NumPy, under strategies of ours."""
