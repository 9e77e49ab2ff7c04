"""Federated adversarial learning in theory and on images; see `experiments.fal.study`."""
