"""What no attack can do: the accuracy and the loss that bounds leave a model, whatever inputs in a box are.

An example is certified where the lower bounds m_j of the margins z_y - z_j, over all inputs within epsilon of it in
each number and within the domain, are all above 0; a tie is not certain. The loss is at most
log(1 + sum_{j != y} exp(-m_j)). Bounds are computed in double precision; of a model in single precision, whose own
outputs are rounded, margins have to be above 1e-5 (1 + max_k |z_k|).

Bounds say something about the very model that they are of: not about the mean of models that have some.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from fedsim.attacks.gradient import Domain, hold_domain
from fedsim.core.errors import InputError
from fedsim.core.options import NonNegativeFloat, options
from fedsim.nets.bounds import Bounds, Box
from fedsim.nets.crown import Crown
from fedsim.nets.stack import Layout

ROUNDED = 1e-5
"""What of a margin may be rounding, in single precision, of 1 and the largest output."""
Way = Literal["ibp", "crown"]
Ways = Annotated[
    tuple[Way, ...],
    Field(strict=False, min_length=1),
    BeforeValidator(
        lambda given: (given,) if isinstance(given, str) else given,
        json_schema_input_type=Way | Annotated[tuple[Way, ...], Field(min_length=1)],
    ),
]


@options
class Certificate:
    """Bounds of what any attack can do to an example, for the model that is judged."""

    epsilon: NonNegativeFloat
    """How far each input may be moved."""
    by: Ways = ("ibp", "crown")
    """How outputs are bounded: ibp, intervals, of most models; crown, lines around each ReLU, of chains of linear
    layers and ReLU, where the better of both counts. Plain training hides from intervals what it does withstand.
    """
    domain: Domain = (0.0, 1.0)
    """Lower and upper bound of every input, to which boxes are cut; none: there are no bounds."""

    def __post_init__(self) -> None:
        if self.bounds is not None and self.bounds[0] >= self.bounds[1]:
            raise InputError("domain", list(self.bounds), "the lower bound must be below the upper one")
        if len(set(self.by)) < len(self.by):
            raise InputError("by", list(self.by), "names one way twice; name each once")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The domain; None: there is none."""
        return None if self.domain == "none" else self.domain

    @property
    def labels(self) -> dict[Way, str]:
        """What measures are called, by way."""
        return {way: f"certified_{way}" for way in self.by}

    def passes(self, classes: int) -> float:
        """How many forward passes of an example it takes: of its box, and with CROWN of a row for each class."""
        return 3.0 + (classes if "crown" in self.by else 0.0)

    def check(self, x: Tensor) -> None:
        """Raise InputError where inputs [n, ...] are tokens, or lie outside the domain."""
        hold_inputs(self.bounds, x)

    def holds(self, epsilon: float, bounds: tuple[float, float] | None) -> bool:
        """Whether an attack within epsilon and a domain stays in the boxes."""
        inside = self.bounds is None or (
            bounds is not None and self.bounds[0] <= bounds[0] and bounds[1] <= self.bounds[1]
        )
        return epsilon <= self.epsilon and inside


class Certified:
    """The bounds of a model. loose: what of it has bounds that are weak. InputError: a layer has no rule."""

    def __init__(self, certificate: Certificate, module: nn.Module, layout: Layout) -> None:
        self._certificate, self._layout = certificate, layout
        self._bounds = Bounds(module, layout)
        self._crown = Crown(self._bounds) if "crown" in certificate.by else None
        self.loose = self._bounds.loose

    def worst(self, params: Tensor, x: Tensor, targets: Tensor) -> dict[Way, Tensor]:
        """Outputs [B, K], 0 for targets [B], that are the right class's where x [B, ...] are certified; by way."""
        with torch.no_grad():
            named = self._bounds.named(self._layout.stack(params.double()).leaves, 1)
            inputs, targets = x.double().unsqueeze(0), targets.unsqueeze(0)
            box = Box.around(inputs, self._certificate.epsilon, self._certificate.bounds)
            slack = 0.0 * inputs.flatten(2)[..., 0]
            if params.dtype != torch.float64:
                slack = ROUNDED * (1.0 + self._bounds.exactly(named, inputs).abs().amax(dim=-1))
            margins = {"ibp": self._bounds.margins(named, box, targets)}
            if self._crown is not None:
                margins["crown"] = torch.maximum(margins["ibp"], self._crown.margins(named, box, targets))
            return {way: _outputs(margins[way], targets, slack)[0] for way in self._certificate.by}


def _outputs(margins: Tensor, targets: Tensor, slack: Tensor) -> Tensor:
    """Slack - m, and a little more, so that a tie is lost; 0 for targets."""
    found = torch.nextafter(slack.unsqueeze(-1) - margins, margins.new_full((), torch.inf))
    return found.scatter(-1, targets.unsqueeze(-1), 0.0)


def hold_inputs(bounds: tuple[float, float] | None, x: Tensor) -> None:
    """InputError: inputs [n, ...] are tokens, or lie outside a domain."""
    if not x.is_floating_point():
        raise InputError("epsilon", "given", "the inputs are tokens, which cannot be moved a little; leave it out")
    hold_domain(bounds, x)
