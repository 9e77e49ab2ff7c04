"""Curricula of examples and of clients against training without any; see `experiments.curriculum.study`."""
