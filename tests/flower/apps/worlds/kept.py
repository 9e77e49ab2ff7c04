"""A module that server and clients share on disk, and nowhere else."""

import random

drawn = random.random()
seen = []
