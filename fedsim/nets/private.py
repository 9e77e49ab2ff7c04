"""What of a model stays with each client, and the flat vector in two parts.

Of the vector [d] the entries of some leaves stay with each client, who has its own, p of them; the others, d_s, are
shared: they are the model as strategies, the ledger and checkpoints see it. Both parts are in the order of the layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError
from fedsim.nets.normalisation import BatchNorm
from fedsim.nets.stack import Layout

NORMS = (BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Layers that normalise what passes through them, as they are in a prepared model."""
ABSENT = {
    "norm": "the model has no layer that normalises; remove it",
    "statistics": "the model has no batch normalisation; remove it",
}
"""Why words that stand for leaves of some models are refused for another."""


@dataclass(frozen=True, eq=False)
class Private:
    """The entries that stay with each client, of models [d] as `layout` has them.

    stays: of each leaf, whether it does; some do and some do not. start: where training starts, [d].
    """

    layout: Layout
    stays: tuple[bool, ...]
    start: Tensor

    @classmethod
    def of(cls, named: Iterable[str], module: nn.Module, layout: Layout, start: Tensor) -> Private:
        """What stays where the named leaves do.

        named: `norm`, all of the layers that normalise, by their type; `statistics`, the running ones of batch
        normalisation; `head`, those of the last layer that has any; or their names, in which * stands for anything.
        InputError: one of them names no leaf of the model, or they name all.
        """
        chosen: set[str] = set()
        for name in named:
            found = set(_named(name, module, layout))
            if not found:
                unknown = f"is no parameter of this model, which has {_some(layout.names)}"
                raise InputError("private", name, ABSENT.get(name, unknown))
            chosen |= found
        if len(chosen) == len(layout.names):
            raise InputError("private", ", ".join(named), "would be all of the model; leave something to be shared")
        return cls(layout, tuple(name in chosen for name in layout.names), start)

    @cached_property
    def shared(self) -> Layout:
        """Where the shared parameters lie in a vector of them, [d_s]."""
        return self._part(stays=False)

    @cached_property
    def own(self) -> Layout:
        """Where a client's own parameters lie in a vector of them, [p]."""
        return self._part(stays=True)

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


def _named(name: str, module: nn.Module, layout: Layout) -> Iterator[str]:
    """The leaves that are meant by a word, or by a name in which * stands for anything."""
    owner = {leaf: leaf.rpartition(".")[0] for leaf in layout.names}
    if name == "norm":
        yield from (leaf for leaf in layout.names if isinstance(module.get_submodule(owner[leaf]), NORMS))
    elif name == "statistics":
        yield from layout.names[layout.trained :]
    elif name == "head":
        yield from (leaf for leaf in layout.names if owner[leaf] == owner[layout.names[layout.trained - 1]])
    else:
        yield from (leaf for leaf in layout.names if fnmatchcase(leaf, name))


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
