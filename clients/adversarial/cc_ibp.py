"""CC-IBP: the loss of margins between those under attack and those that bounds allow.

minimise  log(1 + sum_{j != y} exp(-a_j)),  a = alpha m + (1 - alpha) (z_y(x') - z(x')),  m_j <= z_y - z_j around x
x' is what the attack makes of x; published with one step of 10 epsilon from a random start. At most the loss of
`mtl_ibp`, example by example, and the same at alpha = 0 and 1. Twice the gradients of a batch more, beside those of
the attack. De Palma et al. 2024. In rounds of `warm_up` the loss is the plain one.
"""

from __future__ import annotations

from torch import Tensor

from fedsim.client import Expressive, Seen, options


@options
class CcIBP(Expressive):
    """Margins are mixed, and not losses."""

    def between(self, seen: Seen, attacked: Tensor) -> Tensor:
        """What is minimised, [k]. attacked: x', [k, B, ...]."""
        margins = self.alpha * seen.least() + (1.0 - self.alpha) * seen.margins(attacked)
        return seen.mean(seen.worst(margins))
