"""Models as chains of seeds: of a network a list of numbers crosses, from which everybody rebuilds the same bits.

    theta <- start + scale * e(s_0),  then, gene after gene,  theta <- theta + p_j e(s_j), j = 1, 2, ...

e(s) is a standard normal vector, named by the run's seed and the gene's own. Additions are made in this order, and each
product is rounded before it is added, in the precision of the run: a chain has the same bits whether it is rebuilt from
its beginning or from its parent, which lacks the last gene. A chain takes 8 bytes and 12 a gene, whatever d is.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.core.philox import MASK
from fedsim.core.streams import Streams
from fedsim.nets.stack import Layout
from fedsim.zeroth_order.directions import Keys, part

FIRST, GENE = 8, 12
"""Bytes of a chain's first seed; and of a gene: a seed of 8, and its power or the place of the parent in 4."""
AT_HAND = 2**28
"""Bytes of rebuilt models that a process keeps at most."""


@dataclass(frozen=True)
class Chains:
    """n chains. seeds: int64 [n, L]; powers: float32 [n, L], of the first seed 0; lengths: int64 [n], 1 or more."""

    seeds: Tensor
    powers: Tensor
    lengths: Tensor

    @classmethod
    def begun(cls, seeds: Tensor) -> Chains:
        """Chains of one seed each, int64 [n]."""
        powers = torch.zeros(len(seeds), 1, device=seeds.device)
        return cls(seeds.unsqueeze(1), powers, torch.ones_like(seeds))

    @classmethod
    def of(cls, named: Mapping[str, Tensor], name: str = "") -> Chains:
        """Those that `named` has made."""
        return cls(*(named[f"{name}{part}"] for part in ("seeds", "powers", "lengths")))

    def named(self, name: str = "") -> dict[str, Tensor]:
        """What they are made of, by name."""
        return {f"{name}{part}": held for part, held in vars(self).items()}

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, rows: Tensor) -> Chains:
        """Some of them, int64 [m], no wider than the longest."""
        lengths = self.lengths[rows]
        width = int(lengths.max()) if len(rows) else 0
        return Chains(self.seeds[rows, :width], self.powers[rows, :width], lengths)

    def and_then(self, others: Chains) -> Chains:
        """These, and then others."""
        width = max(self.seeds.shape[1], others.seeds.shape[1])

        def wide(rows: Tensor) -> Tensor:
            return functional.pad(rows, (0, width - rows.shape[1]))

        seeds = torch.cat((wide(self.seeds), wide(others.seeds)))
        powers = torch.cat((wide(self.powers), wide(others.powers)))
        return Chains(seeds, powers, torch.cat((self.lengths, others.lengths)))

    def children(self, parents: Tensor, seeds: Tensor, power: float) -> Chains:
        """Of the chains at places `parents`, int64 [m], each with one more gene: its seed, int64 [m], and the power."""
        chosen = self[parents]
        seeds_, powers = functional.pad(chosen.seeds, (0, 1)), functional.pad(chosen.powers, (0, 1))
        last = chosen.lengths.unsqueeze(1)
        seeds_ = seeds_.scatter(1, last, seeds.unsqueeze(1))
        return Chains(seeds_, powers.scatter(1, last, torch.full_like(powers[:, :1], power)), chosen.lengths + 1)

    @property
    def last(self) -> Tensor:
        """The last seed of each, int64 [n], which no two networks of a run have in common."""
        return self.seeds.gather(1, (self.lengths - 1).unsqueeze(1)).squeeze(1)

    @property
    def nbytes(self) -> Tensor:
        """Bytes of each, int64 [n]."""
        return FIRST + GENE * (self.lengths - 1)

    def marks(self) -> list[tuple[bytes, bytes]]:
        """Of each chain what tells it from others, and the same of its parent; empty where it has none."""
        rows = zip(self.seeds.cpu(), self.powers.cpu(), self.lengths.tolist(), strict=True)
        return [(_key(seeds, powers, length), _key(seeds, powers, length - 1)) for seeds, powers, length in rows]


def _key(seeds: Tensor, powers: Tensor, length: int) -> bytes:
    return seeds[:length].numpy().tobytes() + powers[:length].numpy().tobytes()


@dataclass(frozen=True)
class Genome:
    """What chains are rebuilt with. seed: the run's, int64 [1]. start, scale: of the first model, [d]."""

    seed: Tensor
    start: Tensor
    scale: Tensor

    def normal(self, seeds: Tensor) -> Tensor:
        """The vectors e(s) of seeds int64 [n]: [n, d]."""
        keys, like = Keys("gene", owner=seeds & MASK, turn=seeds >> 32), self.start
        return part("gaussian", Streams(int(self.seed)), keys, 0, len(like), dtype=like.dtype, device=like.device)

    def first(self, seeds: Tensor) -> Tensor:
        """The models of chains of one seed, int64 [n]: [n, d]."""
        return self.start + self.scale * self.normal(seeds)

    def mutated(self, parents: Tensor, seeds: Tensor, power: float | Tensor) -> Tensor:
        """Models [n, d] with one more gene: its seed, int64 [n], and its power, or one each, float32 [n, 1]."""
        return parents + torch.as_tensor(power, dtype=torch.float32).to(parents) * self.normal(seeds)

    def whole(self, chains: Chains) -> Tensor:
        """The models of chains, [n, d], each from its beginning."""
        rows = self.first(chains.seeds[:, 0]) if len(chains) else self.start.new_zeros(0, len(self.start))
        for place in range(1, chains.seeds.shape[1]):
            longer = (chains.lengths > place).nonzero().squeeze(1)
            powers = chains.powers[longer, place].unsqueeze(1)
            rows[longer] = self.mutated(rows[longer], chains.seeds[longer, place], powers)
        return rows

    def rebuilt(self, chains: Chains) -> Tensor:
        """As `whole`, from what this process has at hand of them or of their parents, with the same bits."""
        made = hashlib.blake2b(self.seed.cpu().numpy().tobytes() + str((self.start.dtype, self.start.device)).encode())
        for vector in (self.start, self.scale):
            made.update(vector.cpu().numpy().tobytes())
        rows, lacking = self.start.new_empty(len(chains), len(self.start)), list[int]()
        keys = [(made.digest() + own, made.digest() + parent) for own, parent in chains.marks()]
        for row, (own, parent) in enumerate(keys):
            known, before = _KNOWN.get(own), _KNOWN.get(parent)
            if known is not None:
                rows[row] = known
            elif before is not None:
                last = slice(int(chains.lengths[row]) - 1, int(chains.lengths[row]))
                rows[row] = self.mutated(before.unsqueeze(0), chains.seeds[row, last], chains.powers[row, last])[0]
            else:
                lacking.append(row)
        if lacking:
            rows[lacking] = self.whole(chains[torch.tensor(lacking, device=rows.device)])
        for (own, _), model in zip(keys, rows, strict=True):
            _KNOWN.put(own, model)
        return rows


class _Known:
    """Rebuilt models by what they are made of, of at most `AT_HAND` bytes; the longest unused are dropped first."""

    def __init__(self) -> None:
        self._held: OrderedDict[bytes, Tensor] = OrderedDict()
        self._nbytes = 0
        self._lock = Lock()

    def get(self, key: bytes) -> Tensor | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: bytes, model: Tensor) -> None:
        with self._lock:
            if key not in self._held:
                self._held[key] = model.clone()
                self._nbytes += model.nbytes + len(key)
            while self._nbytes > AT_HAND:
                dropped, old = self._held.popitem(last=False)
                self._nbytes -= old.nbytes + len(dropped)

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self._nbytes = 0


_KNOWN = _Known()


def first_scale(layout: Layout, spread: float, start: Tensor) -> tuple[Tensor, Tensor]:
    """Where first models begin, and by how much they vary, [d] each; start: where the problem begins, [d].

    Of a model weights vary about 0 by spread / sqrt(fan-in), and what else it has, such as biases, begins at 0 and
    moves by mutation alone. What is no model varies about the start by the spread.
    """
    if len(layout.shapes) == 1 and len(layout.shapes[0]) < 2:
        return start.clone(), torch.full_like(start, spread)
    parts = []
    for shape in layout.shapes:
        count = torch.Size(shape).numel()
        inputs = count // shape[0] if len(shape) > 1 else 0
        parts.append(start.new_full((count,), spread / inputs**0.5 if inputs else 0.0))
    return torch.zeros_like(start), torch.cat(parts)
