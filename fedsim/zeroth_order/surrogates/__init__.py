"""Surrogates of functions that can only be queried: Gaussian processes and random features, for stacks of clients."""
