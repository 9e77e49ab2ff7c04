"""FedZO's server: the mean of the clients' changes, which they have searched for with values alone.

theta <- theta + eta * sum_i w_i Delta_i, by default w_i = 1/k
Uplink and downlink d floats a client (with a guard one more up, and up to 2d more down). Fang et al. 2022; the guard
as in the code that was published with Shu et al. 2023.
"""

from __future__ import annotations

from fedsim.server import options
from fedsim.zeroth_order import GuardedStep


@options
class FedZO(GuardedStep):
    """Goes with any client that searches; where its clients add a proximal term it is FedProx."""
