"""L-GreCo: each layer of a model has a rank, a share or a number of levels of its own, so that fewest bits cross.

min sum_l b_l(c_l) subject to sum_l e_l(c_l) <= alpha sum_l e_l(c*),  e_l(c) = |G_l - C_c(G_l)|
G is the sum of what came to it since a client chose last, c* the compressor's own parameter. A layer's message with its
parameter, and log2 K bits of which one of K it is. Alimohammadi et al. 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.compression.allotting import allot
from fedsim.compression.groups import hold_numbers, norm
from fedsim.compression.integer import Integer
from fedsim.compression.lengths import place_bits
from fedsim.compression.low_rank import LowRank
from fedsim.compression.qsgd import QSGD
from fedsim.compression.random_k import RandomK
from fedsim.compression.top_k import TopK
from fedsim.core.errors import InputError, naming
from fedsim.core.options import PositiveFloat, PositiveInt, options
from fedsim.core.plugins import HasPlugins, kind_of
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Shapes, Transform, Vector

VARIED: Mapping[type[Transform], str] = {
    TopK: "ratio",
    RandomK: "ratio",
    LowRank: "rank",
    QSGD: "levels",
    Integer: "bits",
}
"""The option of a compressor that differs from layer to layer."""
Candidates = Annotated[tuple[PositiveInt | PositiveFloat, ...], Field(strict=False, min_length=2, max_length=256)]


@options
class LGreCo(HasPlugins, Transform):
    """Each client chooses for itself. What it sends is dense to transforms after it, which cannot quantise it."""

    parts: ClassVar[Mapping[str, str]] = {"compressor": "transforms"}
    keeps_statistics: ClassVar[bool] = False

    compressor: Any
    """A compressor, a table: top_k or random_k with a ratio, low_rank, qsgd, or integer. All layers have its parameter,
    c*, until they choose.
    """
    candidates: Candidates
    """What a layer may have in its place, among them c* itself; the paper's lie between c*/2 and 2 c*."""
    alpha: PositiveFloat = 1.0
    """How much may be left out, as a multiple of what c* leaves out in all layers."""
    errors: Literal["norms", "squares"] = "norms"
    """What is summed over layers: the norms of what is left out, as in the paper, or their squares, with which the
    whole vector loses no more of its square than with c*.
    """
    every: PositiveInt = 10
    """Messages after which a client chooses again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        own = self.made["compressor"]
        name = VARIED.get(type(own))
        if name is None:
            remedy = "it has nothing that could differ from layer to layer; take top_k, random_k, low_rank, qsgd"
            raise InputError("compressor", kind_of("transforms", own), f"{remedy} or integer")
        if own.vectors is not None:
            raise InputError("compressor.vectors", ", ".join(own.vectors), "say it beside the compressor; remove it")
        if getattr(own, name) not in self.candidates:
            remedy = f"the compressor's own {name} is not among them; add it"
            raise InputError("candidates", ", ".join(map(str, self.candidates)), f"{remedy}: {getattr(own, name)}")
        self.ways  # noqa: B018  # a candidate that the compressor cannot have is refused when the experiment is read
        object.__setattr__(self, "sparse", own.sparse)

    @cached_property
    def ways(self) -> Sequence[Transform]:
        """The compressor with each of the candidates."""
        own, found = self.made["compressor"], list[Transform]()
        for place, value in enumerate(self.candidates):
            with naming(f"candidates.{place}"):
                found.append(replace(own, **{VARIED[type(own)]: value}))
        return found

    @property
    def usual(self) -> int:
        """The place of the compressor's own parameter among the candidates."""
        own = self.made["compressor"]
        return self.candidates.index(getattr(own, VARIED[type(own)]))

    def layers(self, numbers: int) -> list[tuple[int, list[Transform]]]:
        """Of each layer how many numbers it has, and the compressor with each candidate; what is no model is one."""
        shapes = self.shapes if sum(map(prod, self.shapes)) == numbers else ((numbers,),)
        return [(prod(shape), [way.bound((shape,)) for way in self.ways]) for shape in shapes]

    def check(self, before: Size) -> None:
        """See `Transform`."""
        hold_numbers(kind_of("transforms", self), before)
        if before.numbers != sum(map(prod, self.shapes)):
            remedy = "the transforms before it leave no layers; put it first, or take its compressor alone"
            raise InputError("kind", kind_of("transforms", self), remedy)
        for place, way in enumerate(self.ways):
            with naming(f"candidates.{place}"):
                way.bound(self.shapes).check(before)

    def state(self, length: int) -> Shapes:
        """See `Transform`."""
        kept: dict[str, tuple[int, ...]] = {"sum": (length,), "count": (1,), "chosen": (len(self.layers(length)),)}
        for place, (size, ways) in enumerate(self.layers(length)):
            for number, way in enumerate(ways):
                kept |= {_within(place, number) + name: shape for name, shape in way.state(size).items()}
        return kept

    def size(self, before: Size) -> Size:
        """See `Transform`."""
        most = [max(_bits(own, before)) for own in self.layers(before.numbers)]
        return Size(before.numbers, 0, before.beside + sum(most) + len(most) * place_bits(len(self.ways)))

    def error(self, before: Size) -> float | None:
        """See `Transform`."""
        each = [way.error(Size(size, before.bits)) for size, ways in self.layers(before.numbers) for way in ways]
        return None if None in each else max(cast("list[float]", each))

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        rows, state, layers = vector.rows, vector.sender.state, self.layers(vector.rows.shape[1])
        total, count = state["sum"] + rows, state["count"] + 1.0
        due = (count[:, 0] >= self.every).nonzero()[:, 0]
        chosen = state["chosen"].long() + self.usual
        if len(due):
            chosen[due] = self._choose(Vector(total[due], vector.size, vector.sender[due], vector.place))
            total[due], count[due] = 0.0, 0.0
        sent, bits = torch.empty_like(rows), torch.full_like(vector.sender.clients, len(layers))
        bits *= place_bits(len(self.ways))
        kept = {"sum": total, "count": count, "chosen": (chosen - self.usual).to(rows.dtype)}
        first = 0
        for place, (size, ways) in enumerate(layers):
            for number in range(len(ways)):
                own = (chosen[:, place] == number).nonzero()[:, 0]
                part = self.part(vector, place, number)
                coded = ways[number].encode(replace(part, rows=part.rows[own], sender=part.sender[own]))
                sent[own, first : first + size] = coded.received()[0]
                bits[own] += coded.size.numbers * coded.size.bits + coded.size.beside
                for name, value in coded.sender.state.items():
                    kept[_within(place, number) + name] = part.sender.state[name].index_copy(0, own, value)
            first += size
        moved = replace(vector, sender=replace(vector.sender, state={**state, **kept}))
        return moved.coded(sent, Size(rows.shape[1], 0, vector.size.beside + bits))

    def part(self, vector: Vector, place: int, number: int, stream: str = "l-greco") -> Vector:
        """A layer of a vector, of which a compressor with one of the candidates is to send all."""
        sizes = [size for size, _ in self.layers(vector.rows.shape[1])]
        first = sum(sizes[:place])
        sender = replace(vector.sender, streams=vector.sender.streams.apart(f"{stream}/{place}"))
        return Vector(
            vector.rows[:, first : first + sizes[place]],
            Size(sizes[place], vector.size.bits),
            sender.of(_within(place, number)),
            vector.place,
        )

    def _choose(self, total: Vector) -> Tensor:
        """The candidate of each layer, int64 [C, L], of what has come together."""
        layers = self.layers(total.rows.shape[1])
        errors = np.zeros((len(total.rows), len(layers), len(self.ways)))
        for place, (_, ways) in enumerate(layers):
            for number, way in enumerate(ways):
                part = self.part(total, place, number, "l-greco/errors")
                errors[:, place, number] = norm(part.rows - way.encode(part).received()[0]).cpu().numpy()
        errors = errors**2 if self.errors == "squares" else errors
        bits = np.array([_bits(own, total.size) for own in layers])
        most = self.alpha * errors[:, :, self.usual].sum(axis=1)
        found = [allot(own, bits, limit, self.usual) for own, limit in zip(errors, most.tolist(), strict=True)]
        return torch.from_numpy(np.stack(found)).to(total.rows.device)


def _bits(layer: tuple[int, list[Transform]], before: Size) -> list[int]:
    """What a layer takes at most with each candidate."""
    sizes = [way.size(Size(layer[0], before.bits)) for way in layer[1]]
    return [size.numbers * size.bits + int(size.beside) for size in sizes]


def _within(place: int, number: int) -> str:
    """How the names begin of what a compressor remembers of a layer with one of the candidates."""
    return f"{place}/{number}/"
