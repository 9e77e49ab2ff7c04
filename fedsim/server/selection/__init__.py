"""Selectors: which of the free clients work next."""
