"""Executing orders: cohorts are cut from the clients, run, and put back in the clients' order.

How is chosen here and nowhere else. `stacked` runs as many clients at once as fit a fixed memory budget; `loop` runs
one at a time through the module itself; `auto` takes the loop for convolutions and LSTMs on a CPU, where it already
runs at the speed of the arithmetic, and for models that cannot be stacked, and the stack for everything else.
Cohorts are spread over the cores of a CPU (see `fedsim.engine.cores`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedsim.engine.cohort import Cohort
from fedsim.engine.cores import cores, one_core_an_operation, spread
from fedsim.engine.dropout import Draw
from fedsim.engine.lowering import has_kernels_of_its_own
from fedsim.engine.network import Batch, ChainNetwork, Network, PlainNetwork, StackedNetwork
from fedsim.engine.store import ClientStore, Shapes
from fedsim.errors import InputError
from fedsim.exchange import BrokenPromiseError, Cost, Orders, Update, finite_rows, payload_bytes
from fedsim.problems.supervised import Supervised
from fedsim.streams import Streams
from fedsim.transforms import Chain, Transform

Choice = Literal["auto", "stacked", "loop"]

WORTH_A_THREAD = 20_000_000
"""Multiply-adds that a step must have, for each core, before threads win more than they lose to Python's lock."""


class Client(Protocol):
    """A client algorithm. Its methods are named after the actions it can do: (Cohort) -> Update.

    needs: names in an order's payload and configuration that it must have. sends: names it may put into a reply. It may
    also have `knows`, names that it reads where they are sent; `state(dimension) -> {name: shape}`, what each client
    remembers between rounds; and `check(sent)`, which refuses options that do not go with what the server sends.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Names that an order must have."""
        ...

    @property
    def sends(self) -> frozenset[str]:
        """Names it may put into a reply's payload."""
        ...

    def cost(self, orders: Orders, examples: Tensor) -> Cost:
        """What clients with so many examples [C] will do; held against what they did."""
        ...


@dataclass(frozen=True)
class Work:
    """What an order came to, in the order of its clients.

    payload, metrics: [C, ...] by name. bytes_up: payload bytes of one reply, as transformed. steps: int64 [C].
    """

    payload: dict[str, Tensor]
    metrics: dict[str, Tensor]
    bytes_up: int
    steps: Tensor


def choose_network(problem: Supervised, choice: Choice) -> tuple[str, Network]:
    """The executor's name and the network it computes with."""
    model, layout, loss = problem.model, problem.layout, problem.loss
    if choice == "loop" or (choice == "auto" and problem.device.type == "cpu" and has_kernels_of_its_own(model)):
        return "loop", PlainNetwork(model, layout, loss)
    chain = ChainNetwork.of(model, layout, loss)
    if chain is not None:
        return "stacked", chain
    try:
        stacked = StackedNetwork(model, layout, loss)
        _try(stacked, problem)
    except InputError:
        if choice == "stacked":
            raise
        return "loop", PlainNetwork(model, layout, loss)
    return "stacked", stacked


def _try(network: Network, problem: Supervised) -> None:
    """Two clients of two examples: a module that `vmap` cannot take is found out before a run, not in it."""
    rows = torch.zeros(2, 2, dtype=torch.int64, device=problem.device)
    draw = Draw(Streams(0), torch.arange(2, device=problem.device), 0, 0)
    weight = torch.full((2, 2), 0.5, dtype=problem.dtype, device=problem.device)
    try:
        network.gradients(
            network.layout.stack(problem.initial(), 2), Batch(problem.x[rows], problem.y[rows], weight, draw)
        )
    except RuntimeError as error:
        line = " ".join(str(error).split())[:200]
        raise InputError("engine.executor", "stacked", f"the model cannot be stacked, use 'loop' ({line})") from error


class Executor:
    """Runs orders for any clients of a problem, here and now.

    memory: bytes that the stacked tensors of one cohort may take. participants: how many different clients may take
    part in the whole run, for the estimate of the state's size, which may take `state_memory` bytes.
    """

    def __init__(
        self,
        problem: Supervised,
        client: Client,
        streams: Streams,
        *,
        choice: Choice = "auto",
        transforms: Sequence[Transform] = (),
        memory: int = 2**28,
        state_memory: int = 2**32,
        participants: int | None = None,
    ) -> None:
        self.problem, self.client, self.streams, self.transforms = problem, client, streams, Chain(tuple(transforms))
        self.name, self.network = choose_network(problem, choice)
        self.memory = memory
        shapes: dict[str, tuple[int, ...]] = dict(_own_state(client, problem.dimension))
        shapes |= self.transforms.init(problem.dimension)
        count = problem.num_clients if participants is None else min(participants, problem.num_clients)
        self.store = ClientStore(shapes, count, problem.device, problem.dtype, state_memory)
        asked = getattr(client, "batch_size", None)
        self._width = min(asked, problem.largest) if isinstance(asked, int) else problem.largest
        cost = problem.footprint
        # A stacked client takes about six vectors of d, and a batch's activations with their gradients.
        numbers = 6 * problem.dimension + 3 * self._width * cost.activations
        self._row_bytes = numbers * problem.dtype.itemsize
        self._row_operations = self._width * cost.operations
        self.cores = cores()

    @property
    def chunk(self) -> int:
        """How many clients are stacked at most: a function of the model and the budget only."""
        return 1 if self.name == "loop" else max(1, self.memory // self._row_bytes)

    def execute(self, orders: Orders) -> Work:
        """Have the clients of an order do its action."""
        problem = self.problem
        clients = orders.clients.to(problem.device)
        cost = self.client.cost(orders, problem.examples[clients])
        rank = torch.argsort(cost.steps, descending=True, stable=True)
        units = self._units(rank)
        act = getattr(self.client, orders.action)

        def work(rows: Tensor) -> tuple[Cohort, Update]:
            ids = clients[rows]
            cohort = Cohort(problem, self.network, self.streams, orders, ids, self.store.read(ids))
            update: Update = act(cohort)
            self._hold(cost, rows, cohort, update)
            return cohort, Update(self._transform(orders, cohort, dict(update.payload)), update.metrics)

        self.store.admit(clients)
        if self._spreads(len(rank)):
            done = spread(work, units)
        else:
            with one_core_an_operation():
                done = [work(rows) for rows in units]
        for cohort, update in done:
            self._remember(cohort, update)
        back = torch.argsort(torch.cat(units))
        payload = _gathered([update.payload for _, update in done], back)
        metrics = _gathered([update.metrics for _, update in done], back)
        encoded = sum(self._encoded(name, rows[0]) for name, rows in payload.items() if len(rows))
        return Work(payload, metrics, encoded, cost.steps)

    def _remember(self, cohort: Cohort, update: Update) -> None:
        """Keep the state of the clients whose work is finite: one that has failed starts again from what it was."""
        if not self.store.shapes:
            return
        finite = finite_rows([*update.payload.values(), *cohort.state.values()])
        kept = {name: value[finite] for name, value in cohort.state.items()}
        self.store.write(cohort.clients[finite], kept)

    def _units(self, rank: Tensor) -> list[Tensor]:
        """Clients, longest first, dealt to cohorts of at most `chunk`, one a core or more where that pays."""
        count = -(-len(rank) // self.chunk)
        if self._spreads(len(rank)):
            count = max(count, min(self.cores, len(rank)))
        return [rank[first::count] for first in range(count)] if count else [rank]

    def _spreads(self, clients: int) -> bool:
        """Whether cohorts of so many clients run on several cores."""
        if self.problem.device.type != "cpu" or self.cores == 1:
            return False
        together = 1 if self.chunk == 1 else clients // self.cores
        return together * self._row_operations > WORTH_A_THREAD

    def _hold(self, cost: Cost, rows: Tensor, cohort: Cohort, update: Update) -> None:
        """Hold a client algorithm to what it declared."""
        if not torch.equal(cohort.steps_taken, cost.steps[rows]):
            raise BrokenPromiseError(
                f"{type(self.client).__name__} took {cohort.steps_taken.tolist()} local steps "
                f"where its cost declares {cost.steps[rows].tolist()}"
            )
        sent = payload_bytes({name: value[0] for name, value in update.payload.items()})
        if sent != cost.bytes_up:
            raise BrokenPromiseError(
                f"{type(self.client).__name__} sends {sent} bytes a client where its cost declares {cost.bytes_up}"
            )

    def _transform(self, orders: Orders, cohort: Cohort, payload: dict[str, Tensor]) -> dict[str, Tensor]:
        """The payload with the change as the transforms leave it."""
        if self.transforms.transforms:
            payload["delta"], state = self.transforms.apply(
                payload["delta"], cohort.state, cohort.clients, self.streams, orders.round
            )
            cohort.keep(**state)
        return payload

    def _encoded(self, name: str, row: Tensor) -> int:
        """Bytes of one client's payload `name` on its way."""
        return self.transforms.nbytes(row) if name == "delta" else row.numel() * row.element_size()


def _own_state(client: Client, dimension: int) -> Shapes:
    state = getattr(client, "state", None)
    shapes: Shapes = {} if state is None else state(dimension)
    return shapes


def _gathered(parts: list[Mapping[str, Tensor]], back: Tensor) -> dict[str, Tensor]:
    """The parts' rows, one after the other, put back into the order of the clients."""
    if not parts:
        return {}
    if len(parts) == 1:
        return {name: value[back] for name, value in parts[0].items()}
    return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}
