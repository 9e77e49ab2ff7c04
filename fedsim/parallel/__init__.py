"""Cores and worker processes; they know nothing of learning."""
