"""Exp-IBP: a weighted geometric mean of the loss under attack and of the one that bounds allow.

minimise  (mean_b CE(z(x'_b), y_b))^(1 - alpha) (mean_b log(1 + sum_{j != y} exp(-m_bj)))^alpha
m_bj <= z_y - z_j in the box around x_b, and x'_b what the attack makes of it; published with one step of 10 epsilon
from a random start. The powers are of the means of a batch, as in the published code, and of 1e-12 at least, for at 0
they have no slope. Twice the gradients of a batch more, beside those of the attack. De Palma et al. 2024. In rounds of
`warm_up` the loss is the plain one.
"""

from __future__ import annotations

from torch import Tensor

from fedsim.client import Expressive, Seen, options

TINY = 1e-12
"""Below it a loss counts as it."""


@options
class ExpIBP(Expressive):
    """At alpha = 0 and 1 it is the loss of `mtl_ibp`, and between at most that."""

    def between(self, seen: Seen, attacked: Tensor) -> Tensor:
        """What is minimised, [k]. attacked: x', [k, B, ...]."""
        found, worst = seen.mean(seen.loss(attacked)), seen.mean(seen.worst(seen.least()))
        return found.clamp(min=TINY).pow(1.0 - self.alpha) * worst.clamp(min=TINY).pow(self.alpha)
