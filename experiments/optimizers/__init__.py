"""Rules of a step beside each other: `python -m experiments.optimizers PART`."""
