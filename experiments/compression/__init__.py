"""Compressors of replies, with feedback and without."""
