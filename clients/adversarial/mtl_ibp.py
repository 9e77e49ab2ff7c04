"""MTL-IBP: a mean of the loss under attack and of the one that bounds allow.

minimise  (1 - alpha) CE(z(x'), y) + alpha log(1 + sum_{j != y} exp(-m_j)),  m_j <= z_y - z_j in the box around x
x' is what the attack makes of x; published with one step of 10 epsilon from a random start. Between the loss of
adversarial training at alpha = 0 and that of `ibp` with kappa = 0 at 1. Twice the gradients of a batch more, beside the
attack's. De Palma et al. 2024. In rounds of `warm_up` the loss is the plain one.
"""

from __future__ import annotations

from torch import Tensor

from fedsim.client import Expressive, Seen, options


@options
class MtlIBP(Expressive):
    """The attack is seen as it is at alpha = 0, and not at all at 1."""

    def between(self, seen: Seen, attacked: Tensor) -> Tensor:
        """What is minimised, [k]. attacked: x', [k, B, ...]."""
        return seen.mean((1.0 - self.alpha) * seen.loss(attacked) + self.alpha * seen.worst(seen.least()))
