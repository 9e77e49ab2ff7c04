"""Benchmarks: fedsim beside its peers, interleaved in one run."""
