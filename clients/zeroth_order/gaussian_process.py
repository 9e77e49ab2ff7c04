"""The gradient of a Gaussian process that is fitted to all that a client has seen: ZoRD's estimate for any client.

ghat = grad mu(x), mu: the posterior mean given the values nearest to x
The values at x and at `active` random points around it join the client's trajectory before each estimate. Shu et al.
2022 (ZoRD); Shu et al. 2023, equation 4. FZooS asks where the process is least certain instead; see `clients/fzoos.py`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from fedsim.client import PositiveFloat, PositiveInt, Shapes, options
from fedsim.zeroth_order import KERNELS, Estimate, Memory, Probe, Trajectory, fit


@options
class GaussianProcess:
    """A client keeps its latest `history` values."""

    values_only: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True

    active: PositiveInt = 5
    """Random points a step."""
    radius: PositiveFloat = 0.01
    """How far from x these lie at most, in every coordinate."""
    kernel: Literal["matern52", "rbf"] = "matern52"
    """Matern's with nu = 5/2, or the squared exponential (rbf)."""
    profiled: bool = False
    """Choose its length scale as if the size of the function were unknown, and not that of the values' range."""
    neighbours: PositiveInt = 150
    """The process is fitted to so many of a client's values, those nearest to x."""
    history: PositiveInt = 1000
    """The latest values that a client keeps."""
    noise: PositiveFloat = 1e-6
    """Variance of the noise of values scaled to [0, 1]."""

    def evaluations(self, dimension: int) -> int:  # noqa: ARG002
        """Those of the points around x."""
        return self.active

    def state(self, dimension: int) -> Shapes:
        """The trajectory."""
        return Trajectory.shapes(self.history, dimension)

    def check(self, dimension: int) -> None:
        """Any number of parameters will do."""

    def estimate(self, probe: Probe, x: Tensor, base: Tensor | None, memory: Memory) -> Estimate:
        """Estimate the gradients at x [k, d]."""
        assert base is not None
        seen, center = Trajectory.of({name: rows.clone() for name, rows in memory.items()}), x.unsqueeze(1)
        drawn = probe.streams.uniform(
            f"process/{probe.point}",
            probe.clients,
            (self.active, x.shape[1]),
            turn=probe.turn,
            step=probe.step,
            dtype=x.dtype,
        )
        around = center + self.radius * (2.0 * drawn - 1.0)
        seen.add(center, base.unsqueeze(1))
        seen.add(around, probe.query(around))
        process = fit(KERNELS[self.kernel], *seen.nearest(x, self.neighbours), noise=self.noise, profiled=self.profiled)
        return Estimate(process.gradient(center)[:, 0].to(x.dtype), base, seen.state)
