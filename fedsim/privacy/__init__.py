"""Differential privacy: what is clipped and noised, and what that costs by the account."""
