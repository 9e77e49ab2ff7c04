"""Adversarial examples: attacks, what they maximise, and training against them."""
