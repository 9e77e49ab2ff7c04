"""What clients remember between rounds: one row a client, made when it first takes part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.exchange.transforms import Shapes


class Memories(Protocol):
    """What clients remember, to be read."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of one client's row, by name."""
        ...

    def look(self, name: str, clients: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of what `clients` [C] would read under a name, [C, *shape], and which of them have rows, bool [C]."""
        ...

    def lend(self, name: str, clients: Tensor) -> Tensor:
        """The same rows, and not copies where they lie one behind the other: nobody may write to them."""
        ...

    def along(self, clients: Tensor) -> Tensor:
        """The clients in the order in which their rows lie, those that have none last."""
        ...


@dataclass(frozen=True)
class Recalled:
    """Memories of which those of some clients are from before.

    before: of these clients rows by name, [*shape] each.
    """

    now: Memories
    before: Mapping[int, Mapping[str, Tensor]]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of one client's row, by name."""
        return self.now.shapes

    def look(self, name: str, clients: Tensor) -> tuple[Tensor, Tensor]:
        """See `Memories.look`."""
        found, known = self.now.look(name, clients)
        for row, client in enumerate(clients.tolist()):
            if client in self.before:
                found[row] = self.before[client][name]
        return found, known

    def lend(self, name: str, clients: Tensor) -> Tensor:
        """See `Memories.lend`."""
        return self.look(name, clients)[0]

    def along(self, clients: Tensor) -> Tensor:
        """See `Memories.along`."""
        return self.now.along(clients)


class ClientStore:
    """Rows of named state for the clients that have taken part so far, zero at first where `initial` has no other.

    shapes: the shape of one client's row, by name. participants: how many different clients may take part at most, for
    the size estimate; above `budget` bytes the store is refused before anything runs. initial: what a row is at first.
    """

    def __init__(
        self,
        shapes: Shapes,
        participants: int,
        device: torch.device,
        dtype: torch.dtype,
        budget: int,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.shapes, self.device, self.dtype = dict(shapes), device, dtype
        row = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
        if row * participants > budget:
            raise InputError(
                "engine.state_mib",
                budget // 2**20,
                f"{participants} clients keep {row} bytes of state each, {row * participants // 2**20} MiB in all; "
                "raise it, choose fewer clients or rounds, or an algorithm without client state",
            )
        self._row_of: dict[int, int] = {}
        self._initial = initial or {}
        self._blocks = {name: self._fresh(name, 0) for name in shapes}

    def admit(self, clients: Tensor) -> None:
        """Make rows for those of `clients` [C] that have none yet."""
        if not self.shapes:
            return
        for client in clients.tolist():
            self._row_of.setdefault(client, len(self._row_of))
        for name, block in self._blocks.items():
            if len(self._row_of) > len(block):
                rows = max(len(self._row_of), 2 * len(block))
                grown = self._fresh(name, rows)
                grown[: len(block)] = block
                self._blocks[name] = grown

    def read(self, clients: Tensor) -> dict[str, Tensor]:
        """Copies of the rows of admitted `clients` [C]: [C, *shape] by name."""
        rows = self._rows(clients)
        return {name: block[rows] for name, block in self._blocks.items()}

    def look(self, name: str, clients: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of what `clients` [C] would read under a name, [C, *shape], and which of them have rows, bool [C]."""
        rows = [self._row_of.get(client, -1) for client in clients.tolist()]
        place, block = torch.tensor(rows, dtype=torch.int64, device=self.device), self._blocks[name]
        known = place >= 0
        if -1 not in rows:
            return block.index_select(0, place), known
        found = self._fresh(name, len(clients))
        found[known] = block.index_select(0, place[known])
        return found, known

    def lend(self, name: str, clients: Tensor) -> Tensor:
        """The same rows, and not copies where they lie one behind the other: nobody may write to them."""
        rows = [self._row_of.get(client, -1) for client in clients.tolist()]
        first = rows[0] if rows else -1
        if first < 0 or rows != list(range(first, first + len(rows))):
            return self.look(name, clients)[0]
        return self._blocks[name][first : first + len(rows)]

    def along(self, clients: Tensor) -> Tensor:
        """The clients in the order in which their rows lie, those that have none last."""
        place = [self._row_of.get(client, len(self._row_of)) for client in clients.tolist()]
        return clients[torch.argsort(torch.tensor(place, dtype=torch.int64, device=clients.device), stable=True)]

    def write(self, clients: Tensor, values: Mapping[str, Tensor]) -> None:
        """Keep rows [C, *shape] of admitted `clients` [C]; unnamed state stays."""
        rows = self._rows(clients)
        for name, value in values.items():
            self._blocks[name][rows] = value

    def snapshot(self) -> dict[str, Tensor]:
        """The clients in the order of their rows, and copies of their rows."""
        count = len(self._row_of)
        held = {name: block[:count].clone() for name, block in self._blocks.items()}
        return {"clients": torch.tensor(list(self._row_of), dtype=torch.int64), **held}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go back to a snapshot."""
        self._row_of = {client: row for row, client in enumerate(saved["clients"].tolist())}
        self._blocks = {name: saved[name].clone() for name in self.shapes}

    def _fresh(self, name: str, rows: int) -> Tensor:
        """Rows of clients that have taken no part yet."""
        initial = self._initial.get(name)
        if initial is None:
            return torch.zeros((rows, *self.shapes[name]), device=self.device, dtype=self.dtype)
        return initial.expand(rows, *self.shapes[name]).clone()

    def _rows(self, clients: Tensor) -> Tensor:
        if not self.shapes:
            return torch.zeros(0, dtype=torch.int64)
        rows = [self._row_of[client] for client in clients.tolist()]
        return torch.tensor(rows, dtype=torch.int64, device=self.device)
