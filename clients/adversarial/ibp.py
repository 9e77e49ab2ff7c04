"""IBP: training on the worst that interval bounds allow anywhere around an example.

minimise  kappa CE(z(x), y) + (1 - kappa) log(1 + sum_{j != y} exp(-m_j)),  m_j <= z_y(x') - z_j(x') for |x' - x| <= eps
m = beta m_crown + (1 - beta) m_ibp,  |.| the largest difference of an input
Over the rounds of `growth` eps grows, kappa falls from 1 in equal steps to its option, and beta from its own to 0.
Twice the gradients of a batch more; with CROWN K - 1 rows of each example backwards beside, which count as one.
Gowal et al. 2018; CROWN-IBP: Zhang et al. 2020. In rounds of `warm_up` the loss is the plain one.
"""

from __future__ import annotations

from torch import Tensor

from fedsim.client import (
    Armed,
    Batch,
    Bounding,
    Cohort,
    Domain,
    NonNegativeFloat,
    Seen,
    Share,
    Stack,
    options,
)


@options
class IBP(Bounding):
    """No attack is made: who is sure of a box is sure of all that is in it."""

    epsilon: NonNegativeFloat
    """Half the width of the box around an example, in each input."""
    domain: Domain = (0.0, 1.0)
    """Lower and upper bound of every input, to which boxes are cut; none: there are no bounds."""
    kappa: Share = 0.5
    """What the loss of the examples as they are counts in the end; the rest is the bounds'."""
    crown: Share = 0.0
    """beta, what bounds by CROWN count at first; 0: never."""

    @property
    def radius(self) -> float:
        """Epsilon."""
        return self.epsilon

    @property
    def gradients(self) -> int:
        """One for the bounds by CROWN."""
        return int(self.crown > 0.0)

    @property
    def domain_of_inputs(self) -> tuple[float, float] | None:
        """The domain; None: there is none."""
        return None if self.domain == "none" else self.domain

    def armed(self, cohort: Cohort, factor: float) -> Armed:
        """Judge each example, and what is around it."""
        progress, around = self.progress(self.round_of(cohort)), self.around(cohort, factor)
        kappa, beta = 1.0 - (1.0 - self.kappa) * progress, self.crown * (1.0 - progress)

        def objective(seen: Seen) -> Tensor:
            margins = seen.least()
            if beta:
                margins = beta * seen.crown() + (1.0 - beta) * margins
            return seen.mean(kappa * seen.loss(seen.x) + (1.0 - kappa) * seen.worst(margins))

        def arm(rows: Stack, batch: Batch) -> Batch:  # noqa: ARG001
            return around(batch, objective)

        return arm
