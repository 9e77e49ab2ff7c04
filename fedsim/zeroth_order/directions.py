"""Random directions v in R^d of which only a name crosses the network.

Directional derivatives p = g.v become an estimate of the gradient g with the dual vector w of v, chosen so that
E[p w] = g. With c = E|p w|^2 / |g|^2, from which the mean of q estimates has E|.|^2 = c(q) |g|^2:

kind          v                                                w        c            c(q)
gaussian      standard normal                                  v        d + 2        1 + (c - 1) / q
rademacher    independent signs                                v        d            1 + (c - 1) / q
sphere        uniform on the unit sphere                       d v      d            1 + (c - 1) / q
segmented     independent signs, magnitudes uniform [1/2, 1]   1 / v    1+7(d-1)/6   1 + (c - 1) / q
orthonormal   q <= d orthonormal rows, uniform (Haar)          d v      d            d / q
coordinate    unit vectors of q <= d distinct coordinates      d v      d            d / q

For segmented directions 1 / v is elementwise; p v would have the mean 7/12 g, as E[v_i^2] = 7/12.

Every direction has a key: (run seed, purpose; owner, turn, step, draw). Its numbers are words of Philox4x32-10 under
the 64-bit key `streams.derive(purpose)` and the counter (block, owner, turn, step * 2^16 + draw), four words a block.
Number i of a gaussian or segmented direction comes from block i // 4, of a rademacher direction (32 signs a word)
from block i // 128, so any range of a direction can be drawn alone and has the bits that it has in the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.philox import MASK
from fedsim.core.streams import SERVER, Index, Streams, philox
from fedsim.exchange.aggregation import halving_sum

Kind = Literal["gaussian", "rademacher", "sphere", "segmented", "orthonormal", "coordinate"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Sliceable = Literal["gaussian", "rademacher", "segmented"]
"""Kinds whose numbers are independent, so that a part can be drawn without the rest."""
DRAWS = 2**16
"""Steps of a round, and draws of a step, that have names: both share one 32-bit counter word."""
PIECE = {"cpu": 2**19}
"""Bytes of temporaries at a time, by type of device: on a CPU they stay in the cache."""
ELSEWHERE = 2**25


@dataclass(frozen=True)
class Keys:
    """Names of J directions: each field is one number for all, or int64 [J].

    owner: a client's id below 2^32, or SERVER for directions that everyone shares. turn: below 2^32. step and draw:
    below 2^16, else InputError; of tensors on a GPU, which would be waited for, who makes them sees to that.
    """

    purpose: str
    owner: Index = SERVER
    turn: Index = 0
    step: Index = 0
    draw: Index = 0

    def __post_init__(self) -> None:
        for name, number in (("step", self.step), ("draw", self.draw)):
            _hold(name, *((number, number) if isinstance(number, int) else _extremes(number)))

    def __len__(self) -> int:
        """J; one where every field is a single number."""
        lengths = {len(field) for field in self._fields.values() if isinstance(field, Tensor)} - {1}
        if len(lengths) > 1:
            raise ValueError(f"keys have one length, not {sorted(lengths)}")
        return lengths.pop() if lengths else 1

    def __getitem__(self, chosen: slice | Tensor) -> Keys:
        """Some of the names: a slice, indices or a mask."""
        count, fields = len(self), self._fields
        if not any(isinstance(field, Tensor) for field in fields.values()):
            fields["owner"] = torch.as_tensor(self.owner, dtype=torch.int64)
        own = {name: field.expand(count)[chosen] for name, field in fields.items() if isinstance(field, Tensor)}
        return Keys(self.purpose, **{**fields, **own})

    @property
    def _fields(self) -> dict[str, Index]:
        return {"owner": self.owner, "turn": self.turn, "step": self.step, "draw": self.draw}

    def counters(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The three counter words beside the block's: int64 [J, 1] each."""
        count = len(self)
        owner, turn_, step, draw = (
            field.to(device, torch.int64).reshape(-1, 1).expand(count, 1)
            if isinstance(field, Tensor)
            else torch.full((count, 1), field, dtype=torch.int64, device=device)
            for field in self._fields.values()
        )
        return owner, turn_, step * DRAWS + draw


def numbered(count: int, owners: int, device: torch.device) -> Tensor:
    """The draws 0, 1, ... of each of so many owners, `count` each: int64 [owners count]. InputError: too many."""
    _hold("draw", 0, count - 1)
    return torch.arange(count, device=device).repeat(owners)


def check(kind: Kind, count: int, dimension: int, option: str = "queries") -> None:
    """Refuse a number of directions that cannot be drawn in d dimensions, with an InputError that names `option`."""
    if kind in ("orthonormal", "coordinate") and count > dimension:
        raise InputError(option, count, f"{kind} directions are at most as many as parameters, here {dimension}")
    if not 0 < count <= DRAWS:
        raise InputError(option, count, f"use 1 to {DRAWS} directions")


def scale(kind: Kind, dimension: int) -> float:
    """The factor with which scale * (g.v) v has the mean g; segmented directions have none, see `dual`."""
    if kind == "segmented":
        raise ValueError("segmented directions are divided by, not scaled")
    return 1.0 if kind in ("gaussian", "rademacher") else float(dimension)


def dual(kind: Kind, directions: Tensor) -> Tensor:
    """The vectors w of directions v, both [..., d], with which E[(g.v) w] = g."""
    if kind == "segmented":
        return directions.reciprocal()
    factor = scale(kind, directions.shape[-1])
    return directions if factor == 1.0 else directions * factor


def second_moment(kind: Kind, dimension: int, count: int = 1) -> float:
    """c(q) of the module's table: E|mean of `count` unbiased estimates|^2 / |g|^2."""
    if kind in ("orthonormal", "coordinate"):
        return dimension / count
    of_one = {"gaussian": dimension + 2.0, "segmented": 1.0 + 7.0 * (dimension - 1) / 6.0}.get(kind, float(dimension))
    return 1.0 + (of_one - 1.0) / count


def draw(
    kind: Kind,
    streams: Streams,
    purpose: str,
    clients: Tensor,
    count: int,
    dimension: int,
    *,
    turn: Index = 0,
    step: Index = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw `count` directions for each client: [C, count, d], on the device of `clients` int64 [C].

    turn, step: one number, or int64 [C]. Draw j of a client is the same whoever else is drawn for and however many
    are drawn, except that `count` = d coordinates come in order, and that orthonormal rows agree up to rounding.
    """
    check(kind, count, dimension)
    if kind == "coordinate":
        return _coordinates(streams, purpose, clients, count, dimension, turn, step, dtype)
    each = numbered(count, len(clients), clients.device)
    owner, turn_, step_ = (
        field.reshape(-1).repeat_interleave(count) if isinstance(field, Tensor) else field
        for field in (clients, turn, step)
    )
    keys = Keys(purpose, owner, turn_, step_, each)
    if kind in ("gaussian", "rademacher", "segmented"):
        drawn = part(kind, streams, keys, 0, dimension, dtype=dtype, device=clients.device)
        return drawn.reshape(len(clients), count, dimension)
    normal = part("gaussian", streams, keys, 0, dimension, dtype=torch.float64, device=clients.device)
    if kind == "sphere":
        norms = halving_sum(normal.square(), 1).sqrt()
        return (normal / norms.unsqueeze(1)).to(dtype).reshape(len(clients), count, dimension)
    orthonormal = _orthonormal(normal.reshape(len(clients), count, dimension))
    return orthonormal.to(dtype, memory_format=torch.contiguous_format)


def orthogonalised(vectors: Tensor) -> Tensor:
    """Standard normal vectors [J, d], made orthogonal to each other, d of them at a time, and as long as they were.

    Each by itself is standard normal still: where an orthonormal basis points, and how long vectors are, is
    independent.
    """
    some = [vectors[first : first + vectors.shape[1]].double() for first in range(0, len(vectors), vectors.shape[1])]
    return torch.cat([_orthonormal(rows) * rows.norm(dim=1, keepdim=True) for rows in some]).to(vectors.dtype)


def _orthonormal(normal: Tensor) -> Tensor:
    """Uniform orthonormal rows, float64 [..., q, d], of standard normal ones, q <= d."""
    rows, triangle = torch.linalg.qr(normal.mT)
    # A QR decomposition is unique, and its Q uniform, only where the diagonal of R is positive.
    signs = triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    orthonormal: Tensor = (rows * signs).mT
    return orthonormal


def part(
    kind: Sliceable,
    streams: Streams,
    keys: Keys,
    start: int,
    stop: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Numbers `start` up to `stop` of each named direction: [J, stop - start], in pieces of bounded memory."""
    make, grain, nbytes = _MAKERS[kind]
    first, last = start // grain, -(-stop // grain)
    drawn = torch.empty(len(keys), last - first, grain, dtype=dtype, device=device)
    owner, turn_, step = keys.counters(device)
    owner, low, high = streams.keyed(f"{keys.purpose}/0/0", owner)  # hashed to what `derive(purpose)` gives
    at_once = PIECE.get(device.type, ELSEWHERE) // (nbytes * grain)
    width = max(1, min(last - first, at_once))
    height = max(1, at_once // width)
    for row in range(0, len(keys), height):
        rows = slice(row, row + height)
        for block in range(first, last, width):
            blocks = torch.arange(block, min(block + width, last), device=device).unsqueeze(0)
            words = philox(blocks, owner[rows], turn_[rows], step[rows], _of(low, rows), _of(high, rows))
            make(words, drawn[rows, block - first : block - first + blocks.shape[1]])
    return drawn.flatten(1)[:, start - first * grain : stop - first * grain]


Words = tuple[Tensor, Tensor, Tensor, Tensor]


def _gaussian(words: Words, out: Tensor) -> None:
    """Box and Muller's rule in double precision, twice a block: words [j, b] to numbers [j, b, 4]."""
    for place in (0, 1):
        # (word + 1/2) / 2^32 is never 0, so the logarithm is finite.
        radius = words[place].to(torch.float64).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = words[place + 2].to(torch.float64).mul_(2.0 * math.pi * 2.0**-32)
        out[..., 2 * place] = angle.cos().mul_(radius)
        out[..., 2 * place + 1] = angle.sin_().mul_(radius)


def _rademacher(words: Words, out: Tensor) -> None:
    """One bit a sign: words [j, b] to numbers [j, b, 128]."""
    octets = torch.stack(words, dim=2).unsqueeze(3) >> torch.arange(0, 32, 8, device=out.device) & 0xFF
    out.copy_(_signs(out.dtype, out.device).index_select(0, octets.flatten()).view(out.shape))


@lru_cache(maxsize=8)
def _signs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The signs that each octet stands for, [256, 8], its lowest bit first."""
    bits = torch.arange(256, device=device).unsqueeze(1) >> torch.arange(8, device=device) & 1
    return (1 - 2 * bits).to(dtype)


def _segmented(words: Words, out: Tensor) -> None:
    """The first bit is the sign, the other 31 say the magnitude: words [j, b] to numbers [j, b, 4]."""
    for number, word in enumerate(words):
        magnitude = (word & (MASK >> 1)).to(torch.float64).mul_(2.0**-32).add_(0.5)
        out[..., number] = torch.where(word > MASK >> 1, -magnitude, magnitude)


_MAKERS: dict[Sliceable, tuple[Callable[[Words, Tensor], None], int, int]] = {
    "gaussian": (_gaussian, 4, 32),
    "rademacher": (_rademacher, 128, 4),
    "segmented": (_segmented, 4, 32),
}
"""What makes numbers of words, how many of a block of four, and roughly the bytes of temporaries of each."""


def _coordinates(
    streams: Streams,
    purpose: str,
    clients: Tensor,
    count: int,
    dimension: int,
    turn: Index,
    step: Index,
    dtype: torch.dtype,
) -> Tensor:
    if count == dimension:
        return torch.eye(dimension, dtype=dtype, device=clients.device).expand(len(clients), -1, -1)
    chosen = streams.permutation(purpose, clients, dimension, turn=turn, step=step)[:, :count]
    units = torch.zeros(len(clients), count, dimension, dtype=dtype, device=clients.device)
    return units.scatter_(2, chosen.unsqueeze(2), 1.0)


def _of(word: Index, rows: slice) -> Index:
    return word[rows] if isinstance(word, Tensor) else word


def _hold(name: str, low: int, high: int) -> None:
    """Refuse steps or draws that have no names of their own."""
    if low < 0 or high >= DRAWS:
        raise InputError(name, high if high >= DRAWS else low, f"stay within 0 and {DRAWS - 1} in a round")


def _extremes(numbers: Tensor) -> tuple[int, int]:
    if not len(numbers) or numbers.device.type != "cpu":
        return 0, 0
    low, high = numbers.aminmax()
    return int(low), int(high)
