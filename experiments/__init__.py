"""Experiment files, benchmarks, and the reproductions that are checked."""
