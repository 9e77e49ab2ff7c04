"""What of a model stays with each client, and the flat vector in two parts.

Of the vector [d] the entries of some leaves stay with each client, who has its own, p of them; the others, d_s, are
shared: they are the model as strategies, the ledger and checkpoints see it. Both parts are in the order of the layout.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedsim.nets.stack import Layout


@dataclass(frozen=True, eq=False)
class Private:
    """The entries that stay with each client, of models [d] as `layout` has them.

    stays: of each leaf, whether it does; some do, and some that are trained do not. start: where training starts, [d].
    """

    layout: Layout
    stays: tuple[bool, ...]
    start: Tensor

    @classmethod
    def of(cls, leaves: Collection[str], layout: Layout, start: Tensor) -> Private | None:
        """What stays where these leaves do; None: nothing that is trained would be shared."""
        stays = tuple(name in leaves for name in layout.names)
        return None if all(stays[: layout.trained]) else cls(layout, stays, start)

    @cached_property
    def shared(self) -> Layout:
        """Where the shared parameters lie in a vector of them, [d_s]."""
        return self._part(stays=False)

    @cached_property
    def own(self) -> Layout:
        """Where a client's own parameters lie in a vector of them, [p]."""
        return self._part(stays=True)

    @property
    def kept(self) -> set[str]:
        """The names of the leaves that stay."""
        return set(self.own.names)

    @cached_property
    def initial(self) -> Tensor:
        """What a client has of its own before it has taken part, [p]."""
        return self.split(self.start)[1]

    def split(self, models: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the shared entries [..., d_s] and of the others [..., p] of models [..., d]."""
        parts = list(zip(torch.split(models, self.layout.sizes, dim=-1), self.stays, strict=True))
        shared, own = ([part for part, stays in parts if stays == wanted] for wanted in (False, True))
        return torch.cat(shared, dim=-1), torch.cat(own, dim=-1)

    def join(self, shared: Tensor, own: Tensor) -> Tensor:
        """Models [C, d] of shared entries, [d_s] or [C, d_s], and each client's own [C, p]."""
        common = iter(torch.split(shared.expand(len(own), -1), self.shared.sizes, dim=1))
        apart = iter(torch.split(own, self.own.sizes, dim=1))
        return torch.cat([next(apart if stays else common) for stays in self.stays], dim=1)

    def _part(self, *, stays: bool) -> Layout:
        layout = self.layout
        leaves = zip(layout.names, layout.shapes, self.stays, strict=True)
        names, shapes = zip(*((name, shape) for name, shape, own in leaves if own == stays), strict=True)
        return Layout(names, shapes, sum(own == stays for own in self.stays[: layout.trained]))
