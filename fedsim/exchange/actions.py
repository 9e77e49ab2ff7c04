"""Actions and settings that belong to the problem, not to an algorithm."""

from __future__ import annotations

SCORE = "score"
"""The action whose reply is the client's loss under the model that it was sent: of the problem, not of an algorithm."""
SCORE_EXAMPLES = "score-examples"
"""The setting of such an order that says on how many of its examples, at random, a client measures its loss."""
UTILITY, REPORT_UTILITY = "utility", "report-utility"
"""A reply's root of the mean squared loss under the model that was sent, and the setting that asks for it."""
BATCH_SIZE, SPREAD = "batch-size", "spread"
"""The setting that says how many examples a step is about at least, and by which clients tell how unlike theirs are."""
FORWARD = 1 / 3
"""What a forward pass takes of the time of a local step."""
