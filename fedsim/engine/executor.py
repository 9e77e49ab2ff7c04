"""Executing orders: cohorts are cut from the clients, run, and put back in the clients' order.

How is chosen here and nowhere else. `stacked` runs as many clients at once as fit a fixed memory budget; `loop` runs
one at a time through the module itself, on a CPU with all its steps in one go (see `fedsim.nets.plain`); `fused`
stacks, too, but has local training taken in one compiled loop a client, and the values that clients ask for in another
(see `fedsim.nets.fused`); `auto` takes the loop for LSTMs and large convolutions on a CPU, where it already runs at the
speed of the arithmetic, and for models that cannot be stacked, the compiled loops where a round has enough to do for
them, and the stack for everything else. Cohorts are spread over the cores of a CPU (see `fedsim.parallel.cores`), or
with `process` over processes (see `fedsim.engine.process`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.core.errors import InputError, one_line, warn
from fedsim.core.streams import Streams
from fedsim.core.terminal import note
from fedsim.engine.client import Client
from fedsim.engine.cohort import PRIVATE, Cohort
from fedsim.engine.job import CohortResult, Job, JobResult, gathered
from fedsim.engine.options import Choice
from fedsim.engine.returned import declared, done, judged, owned, remembered
from fedsim.engine.scratch import Scratch
from fedsim.engine.store import ClientStore
from fedsim.exchange.actions import FORWARD, REPORT_UTILITY, SCORE, SCORE_EXAMPLES, UTILITY
from fedsim.exchange.messages import Cost, Order, Size, Update, finite_rows, total_bytes, untold_rows
from fedsim.exchange.transforms import Chain, Sender, Transform
from fedsim.nets.chain import ChainNetwork
from fedsim.nets.dropout import Draw
from fedsim.nets.footprint import Beside
from fedsim.nets.fused import fits, fused, installed
from fedsim.nets.lowering import Stackable, loses_to_a_loop
from fedsim.nets.network import Batch, Network, PlainNetwork, StackedNetwork
from fedsim.nets.normalisation import vector_parts
from fedsim.nets.plain import WORTH_A_THREAD
from fedsim.nets.stack import Stack
from fedsim.parallel.cores import at_most, cores, one_core_an_operation, spread
from fedsim.privacy.steps import NoisySteps
from fedsim.problems.base import Examples, Model, Problem

ALIKE = 0.05
"""How far numbers of a stack may be from those of one client, of their size; rounding is far less, a slip far more."""
Tune = Callable[[Cohort, Tensor], Tensor]
"""What trains the models of some clients, [C, d], before they are judged; nothing of it is kept."""

WORTH_COMPILING = 50_000_000
"""Multiply-adds of a round's local training, or of its queries, from which `auto` has them compiled."""


@dataclass(frozen=True, eq=False)
class Individuals:
    """The models of k clients, whatever stays with them included, as rows of the whole layout.

    told: what the algorithm tells of the clients, [k] by name. outputs: what they are judged by, of inputs [k, B, ...].
    """

    models: Stack
    told: dict[str, Tensor]
    outputs: Callable[[Tensor], Tensor]


def choose_network(
    model: Model, data: Examples, choice: Choice, width: int = 1, work: float = 0.0, *, apart: bool = False
) -> tuple[str, Network]:
    """The executor's name and the network it computes with, on batches of this width.

    work: multiply-adds of the local training, or of the queries, that a round declares, as far as they are compiled.
    apart: whether steps look at single examples, as no loop of whole trainings does, and a stack the fastest.
    """
    module, layout, loss = model.module, model.layout, model.loss
    if apart and choice == "fused":
        raise InputError("engine.executor", choice, "its steps clip no single examples; take stacked, or loop")
    work = 0.0 if apart else work
    if choice == "auto" and work >= WORTH_COMPILING and fits(module, layout, loss, data.x):
        if installed():
            choice = "fused"
        else:
            warn("numba is not installed, with which rounds would be compiled; clients are stacked")
    operations = width * model.footprint.operations if data.x.device.type == "cpu" and not apart else None
    chain = ChainNetwork.of(module, layout, loss)
    slower = operations is not None and loses_to_a_loop(module, operations)
    if choice == "loop" or (choice == "auto" and slower):
        return "loop", PlainNetwork(module, layout, loss, operations, chain)
    if choice == "fused":
        loop = fused(module, layout, loss, data.x, data.y)
        network = StackedNetwork(module, layout, loss) if chain is None else chain
        network.loop = network.compiled = loop
        return "fused", network
    if chain is not None:
        return "stacked", chain
    alone = PlainNetwork(module, layout, loss, operations)
    try:
        stacked = StackedNetwork(module, layout, loss)
        _try(stacked, alone, layout.flatten(vector_parts(module)), data)
    except InputError as error:
        if choice == "stacked":
            raise
        note(f"clients are executed one at a time: {error.remedy}")
        return "loop", alone
    return "stacked", stacked


def operations_beside(client: Client, problem: Problem) -> int:
    """Multiply-adds that a step takes a client beside the model's."""
    if problem.model is None:
        return client.operations(((problem.dimension,),))
    shapes = _shapes(problem.model)
    return client.operations(shapes) + _solving(client, problem.model, problem.largest).operations


def _solving(client: Client, model: Model, largest: int) -> Beside:
    """What a client takes to solve for a step from the outputs of a mini-batch."""
    asked = client.batch_size
    width = largest if asked == "full" else min(asked, largest)
    return client.solving(_shapes(model), width * client.views * model.footprint.outputs)


def _shapes(model: Model) -> Sequence[tuple[int, ...]]:
    """Of what is trained, shared or not."""
    layout = model.layout if model.private is None else model.private.layout
    return layout.shapes[: layout.trained]


def _try(network: Network, alone: PlainNetwork, start: Tensor, data: Examples) -> None:
    """Two clients of two examples: a module that cannot be stacked is found out before a run, not in it.

    InputError: `vmap` does not take it, or makes other numbers of it than it gives one at a time.
    """
    layout, clients = network.layout, torch.arange(2, device=start.device)
    rows = (clients % len(data.x)).expand(2, 2)
    weight = torch.full((2, 2), 0.5, dtype=start.dtype, device=start.device)
    batch = Batch(data.x[rows], data.y[rows], weight, Draw(Streams(0), clients, 0, 0))
    own = Batch(data.x[rows[:1]], data.y[rows[:1]], weight[:1], Draw(Streams(0), clients[1:], 0, 0))
    try:
        with Stackable():
            losses, gradients = network.gradients(layout.stack(start, 2), batch)
    except InputError:
        raise
    except Exception as error:  # of whatever kind is in a forward pass that somebody has written
        line = one_line(error, 200)
        raise InputError("engine.executor", "stacked", f"the model cannot be stacked, use 'loop' ({line})") from error
    loss, gradient = alone.gradients(layout.stack(start), own)
    for stacked, found in ((losses[1:], loss), (gradients.flat()[1], gradient.flat()[0])):
        if float((stacked - found).norm()) > ALIKE * float(found.norm()):  # which no NaN is
            remedy = "the model gives other numbers in a stack than one at a time, use 'loop'"
            raise InputError("engine.executor", "stacked", remedy)


class Executor:
    """Runs orders for any clients of a problem, here and now.

    memory: bytes that the stacked tensors of one cohort may take. participants: how many different clients may take
    part in the whole run, for the estimate of the state's size, which may take `state_memory` bytes. work: see
    `choose_network`. largest_batch: the most examples of a step that orders ask for, where that is more than clients
    take by themselves. noisy: how local steps are made private; None: they are not.
    """

    def __init__(
        self,
        problem: Problem,
        client: Client,
        streams: Streams,
        *,
        choice: Choice = "auto",
        transforms: Sequence[Transform] = (),
        memory: int = 2**28,
        state_memory: int = 2**32,
        participants: int | None = None,
        work: float = 0.0,
        largest_batch: int = 0,
        noisy: NoisySteps | None = None,
    ) -> None:
        self.noisy = noisy
        self.problem, self.client, self.streams = problem, client, streams
        plain = Size(problem.dimension, 8 * problem.dtype.itemsize)
        self.transforms = Chain(tuple(transforms)).fitted(problem.layout.shapes, plain)
        self.network: Network | None = None
        self.name = "stacked"
        asked = client.batch_size
        self._width = problem.largest if asked == "full" else min(max(asked, largest_batch), problem.largest)
        if noisy is not None:
            self._width = noisy.capacity
        if problem.model is not None and problem.data is not None:
            self.name, self.network = choose_network(
                problem.model, problem.data, choice, self._width, work, apart=noisy is not None
            )
        elif choice == "loop":
            self.name = choice
        elif choice == "fused":
            raise InputError("engine.executor", choice, "there is no model to train; take auto")
        self.memory = memory
        shapes = dict(remembered(client, client.state(problem.dimension)))
        shapes |= self.transforms.state(plain)
        private = None if problem.model is None else problem.model.private
        whole, initial = problem.dimension, {name: problem.initial() for name in client.models}
        if private is not None:
            whole, initial[PRIVATE] = private.layout.dimension, private.initial
            shapes[PRIVATE] = tuple(private.initial.shape)
        count = problem.num_clients if participants is None else min(participants, problem.num_clients)
        self.store = ClientStore(shapes, count, problem.device, problem.dtype, state_memory, initial)
        numbers = client.numbers(whole, problem.largest)
        self._beside = 0.0
        self._in_any_order = self.network is not None and self.network.loop is not None and client.in_any_order
        width = self._width * client.views
        self._row_operations = beside = operations_beside(client, problem)
        if problem.model is not None:
            # With their gradients; where single examples are clipped each layer's stay until the end.
            numbers += (3 if noisy is None else 5) * width * problem.model.footprint.activations
            numbers += _solving(client, problem.model, problem.largest).numbers
            if self._in_any_order:  # a loop has those of one client at a time: y, a shift, and what is made of them
                numbers = 3 * whole
            self._row_operations += width * problem.model.footprint.operations
            if not client.values_only:
                self._beside = beside * FORWARD / (self._width * problem.model.footprint.operations)
        self._row_bytes = numbers * problem.dtype.itemsize
        self.scratch = Scratch(memory)
        self.cores = cores()

    @property
    def chunk(self) -> int:
        """How many clients are stacked at most: a function of the model and the budget only."""
        return 1 if self.name == "loop" else max(1, self.memory // self._row_bytes)

    @property
    def _together(self) -> int:
        """How many clients are a cohort at most: what takes all steps of one after the other stacks nothing."""
        if self.name == "loop" and self._in_any_order:
            return max(1, self.memory // self._row_bytes)
        return self.chunk

    @property
    def together(self) -> int:
        """How many clients are worth executing at once."""
        return max(self.chunk, self.cores if self._spreads(self.cores) else 1)

    def assign(self, orders: Order) -> Job:
        """The work that an order comes to, as the algorithm declares it."""
        problem = self.problem
        clients = orders.clients.to(problem.device)
        examples = problem.sizes_on_device[clients]
        if orders.action == SCORE:
            nothing, loss = torch.zeros_like(clients), Size(1, 8 * problem.dtype.itemsize)
            return Job((orders,), None, clients, Cost(nothing, {"loss": loss}), problem.dtype.itemsize)
        cost = declared(self.client, orders, examples)
        encoded = total_bytes(self.transforms.sizes(cost.reply))
        if orders.config.get(REPORT_UTILITY):
            encoded += problem.dtype.itemsize
        return Job((orders,), None, clients, cost, encoded)

    def work(self, job: Job) -> Tensor:
        """What a job takes in time, in local steps, float64 [C]: a forward pass takes a share of one."""
        orders, cost, work = job.orders[0], job.cost, job.cost.steps.double() * (1.0 + self._beside)
        if cost.queries:
            work = work + cost.queries * self._value
        if cost.effort is not None:
            work = work + cost.effort
        if orders.action == SCORE or orders.config.get(REPORT_UTILITY):
            examples = self.problem.sizes_on_device[job.clients]
            examples = examples.clamp(max=int(orders.config.get(SCORE_EXAMPLES, self.problem.largest)))
            work = work + self._value * -(-examples // self._width).double()
        return work

    @property
    def _value(self) -> float:
        """What an evaluation takes of the time of a local step: on a black box it is the step."""
        return FORWARD if self.network is not None else 1.0

    def stackable(self, orders: Order) -> Hashable:
        """What orders must have in common to be executed together."""
        return orders.action, tuple(sorted(orders.config.items())), None if self.mixes(orders) else orders.round

    def mixes(self, orders: Order) -> bool:
        """Whether orders of different rounds, and what else differs in their payloads, can be executed together."""
        return orders.action == SCORE or self.client.same_every_round

    def execute(self, job: Job) -> JobResult:
        """Have clients do what they are ordered to."""
        if job.action == SCORE:
            losses = self._losses(job)
            asked = torch.zeros((len(job), 3), dtype=torch.int64, device=self.problem.device)
            asked[:, 2] = ~torch.isfinite(losses[:, 0])
            nbytes = torch.full_like(job.clients, job.encoded)
            payload = {"loss": losses[:, :1].to(self.problem.dtype)}
            result = JobResult(payload, {}, torch.isfinite(losses[:, 0]), nbytes, asked)
        else:
            result = self._act(job)
            if job.config.get(REPORT_UTILITY):
                result.payload[UTILITY] = self._utilities(job, result)
                result.nbytes.add_(self.problem.dtype.itemsize)
        if self.network is None and (job.action == SCORE or job.config.get(REPORT_UTILITY)):
            result.queries[:, 0] += 1
        if self.problem.oracle is not None:
            result = replace(result, said={**self.problem.oracle.complaints(), **result.said})
        return result

    def own_models(self, order: Order, clients: Tensor, state: Mapping[str, Tensor], tune: Tune | None) -> Individuals:
        """The models of `clients` [k] by which they are judged.

        order: which they have not got. state: what they remember, [k, ...] by name. tune: how their models are trained
        before, for which clients are sorted by the steps that it takes, longest first.
        """
        nothing = Cost(torch.zeros_like(clients), {})
        job = Job((order,), None, clients, nothing, 0)
        cohort = Cohort(self.problem, self.network, self.streams.apart("judged"), job, state, self.scratch)
        rows, told = owned(self.client, self.client.personal(cohort), cohort)
        if tune is not None:
            rows = tune(cohort, rows)
        whole = rows if cohort.private is None else cohort.private.join(rows, cohort.state[PRIVATE])
        models = cohort.parts(whole.contiguous())  # no copy, for nobody writes to what is judged
        return Individuals(models, told, lambda x: judged(self.client, self.client.outputs(cohort, models, x), x))

    def close(self) -> None:
        """End what computes beside this process, where something does; it begins again when it is needed."""

    @property
    def keeps_models(self) -> bool:
        """Whether clients are judged by what they remember, so that it must not be ahead of their replies."""
        return self.client.own_models or PRIVATE in self.store.shapes

    def models(self, params: Tensor, clients: Tensor) -> Tensor:
        """What `clients` [C] would use of the model [d]: each with its own entries, [C, d]; all have the same: [d]."""
        private = None if self.problem.model is None else self.problem.model.private
        return params if private is None else private.join(params, self.store.look(PRIVATE, clients)[0])

    def _utilities(self, job: Job, result: JobResult) -> Tensor:
        """What the clients tell beside their reply, [C, 1]; where an evaluation may fail and has, 0."""
        found = self._losses(job)[:, 1:].to(self.problem.dtype)
        if not self.problem.may_fail:
            return found
        came = torch.isfinite(found)
        result.queries[:, 2] += ~came[:, 0]
        return torch.where(came, found, 0.0)

    def _losses(self, job: Job) -> Tensor:
        """What the models that were sent cost the clients, float64 [C, 2]; see `Problem.losses`."""
        found = torch.empty((len(job), 2), dtype=torch.float64, device=self.problem.device)
        for number, orders in enumerate(job.orders):
            rows = slice(None) if job.origin is None else (job.origin == number).nonzero().flatten()
            params, clients = self.models(orders.payload["params"], job.clients[rows]), job.clients[rows]
            found[rows] = self.problem.losses(params, clients, self._sampled(orders), self.streams, orders.turn)
        return found

    def _sampled(self, orders: Order) -> Callable[[int], Tensor] | None:
        """Which of a client's examples its loss is measured on; None: on all."""
        limit = orders.config.get(SCORE_EXAMPLES)
        if limit is None:
            return None

        def places(client: int) -> Tensor:
            owner = torch.full((1,), client, device=self.problem.device)
            count = int(self.problem.sizes[client])
            return self.streams.permutation("score", owner, count, turn=orders.turn)[0, : int(limit)]

        return places

    def _act(self, job: Job) -> JobResult:
        self.store.admit(job.clients)
        if self._in_any_order and len(job) <= self._together:
            return self._whole(job)
        rank = torch.argsort(job.cost.steps, descending=True, stable=True)
        units = self._units(rank)
        done = self._all_act([job[rows] for rows in units])
        finite = [self._remember(result) for result in done]
        back = torch.argsort(torch.cat(units))
        payload = gathered([result.update.payload for result in done], back)
        metrics = gathered([result.update.metrics for result in done], back)
        nbytes = torch.cat([result.nbytes for result in done])
        asked = torch.cat([result.queries for result in done])
        said = {client: text for result in done for client, text in result.said.items()}
        return JobResult(payload, metrics, torch.cat(finite)[back], nbytes[back], asked[back], said)

    def _whole(self, job: Job) -> JobResult:
        """Do a job as one cohort, in the order of its clients."""
        done = self._all_act([job])[0]
        sent = done.update
        return JobResult(
            dict(sent.payload), dict(sent.metrics), self._remember(done), done.nbytes, done.queries, done.said
        )

    def _all_act(self, parts: Sequence[Job]) -> list[CohortResult]:
        """Have cohorts of admitted clients do what they are ordered to."""

        def act(part: Job) -> CohortResult:
            return self.act(part, self.store.read(part.clients))

        with at_most(self.cores), one_core_an_operation():
            return spread(act, parts) if self._spreads(sum(map(len, parts))) else [act(part) for part in parts]

    def act(self, part: Job, state: Mapping[str, Tensor]) -> CohortResult:
        """Have one cohort, which remembers `state`, [k, ...] by name, do what it is ordered to. Nothing is kept."""
        cohort = Cohort(self.problem, self.network, self.streams, part, state, self.scratch, self.noisy)
        told = self.client.beforehand(cohort)
        given = getattr(self.client, part.action)(cohort)
        update = done(self.client, given, told, part.cost, cohort, self.store.shapes)
        crossed = self.transforms.apply(update.payload, Sender(cohort.clients, self.streams, cohort.turn, cohort.state))
        cohort.keep(**crossed.state)
        if self.transforms.transforms and self.client.commits:
            own = self.client.commits & crossed.payload.keys()
            self.client.commit(cohort, {name: update.payload[name] - crossed.payload[name] for name in own})
        sent = Update(crossed.payload, {**cohort.metrics, **update.metrics})
        queries = torch.stack((cohort.queries, cohort.extra_queries, cohort.failed_queries), dim=1)
        # Who sends nothing has something to show for it in what it remembers.
        finite = cohort.finite(sent.payload or cohort.state) & untold_rows(queries).logical_not()
        return CohortResult(part.clients, sent, cohort.state, finite, crossed.nbytes, queries)

    def _remember(self, result: CohortResult) -> Tensor:
        """Keep the state of the clients whose work is finite: one that has failed starts again from what it was.

        Returns which rows' payloads are finite; none where the work is lost, nor of clients all of whose evaluations
        have failed, which know nothing.
        """
        finite = result.finite
        if self.store.shapes:
            sound = finite & finite_rows(list(result.state.values()), finite)
            kept = {name: value[sound] for name, value in result.state.items()}
            self.store.write(result.clients[sound], kept)
        return finite

    def _units(self, rank: Tensor) -> list[Tensor]:
        """Clients, longest first, dealt to cohorts of at most `chunk`, one a core or more where that pays."""
        count = -(-len(rank) // self._together)
        if self._spreads(len(rank)):
            count = max(count, min(self.cores, len(rank)))
        return [rank[first::count] for first in range(count)] if count else [rank]

    def _spreads(self, clients: int) -> bool:
        """Whether cohorts of so many clients run on several cores."""
        if self.problem.device.type != "cpu" or self.cores == 1:
            return False
        together = 1 if self.chunk == 1 else clients // self.cores
        return together * self._row_operations > WORTH_A_THREAD
