"""A cohort: the clients that are executed together, as a client algorithm sees them.

They may train, where they have examples and a model, and they may ask: `query` gives the values of their functions,
whatever these are, and every evaluation is counted.
Everything has a leading axis of clients; an algorithm never loops over them and never learns who they are beyond the
ids that its named draws need.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedsim.core.errors import BrokenPromiseError, InputError, one_line
from fedsim.core.finite import surely_finite
from fedsim.core.streams import Index, Streams
from fedsim.engine.batches import Batching, ClientPlan, Course, Plan, plan_batches, plan_clients
from fedsim.engine.job import Job
from fedsim.engine.scratch import Scratch
from fedsim.exchange.messages import Scalar, finite_rows
from fedsim.nets.descent import Compiled, Queries
from fedsim.nets.dropout import Draw
from fedsim.nets.network import Batch, Network
from fedsim.nets.private import Private
from fedsim.nets.rows import inner
from fedsim.nets.stack import Stack, shaped
from fedsim.privacy.steps import NoisySteps
from fedsim.problems.base import Examples, Problem

GATHER = 2**22
"""How many input numbers are gathered from the data at once: few calls, and they stay in the cache."""
PRIVATE = "private entries"
"""The name under which clients remember their own entries of the model."""
JUDGED = 32
"""How many of its examples a client's model is judged on at once, whatever the cohort, which would change the bits."""


class Cohort:
    """C clients at work.

    clients: int64 [C], sorted by local steps, longest first, unless the algorithm is `in_any_order`. examples: int64
    [C]. state: what they remember, [C, ...] by name; `keep` replaces it. config: of their order. streams: named draws.
    turn: the number under which each of them draws, one or int64 [C]. steps_taken, queries, extra_queries,
    failed_queries: int64 [C], the local
    steps taken so far, the evaluations asked for, and those of them that are no part of the method's published count,
    and that gave no finite value. metrics: [C] by name, told to the server beside those of the update. scratch: for
    what need not be computed again if it is there. noisy: how its steps are made private; None: they are not.
    """

    def __init__(
        self,
        problem: Problem,
        network: Network | None,
        streams: Streams,
        job: Job,
        state: Mapping[str, Tensor],
        scratch: Scratch | None = None,
        noisy: NoisySteps | None = None,
    ) -> None:
        self._noisy = noisy
        self._problem, self._network, self.streams, self._job = problem, network, streams, job
        self.clients, self.state = job.clients, dict(state)
        self.examples = problem.sizes_on_device[self.clients]
        self.turn: Index = job.turn
        self.steps_taken = torch.zeros_like(self.clients)
        self.queries, self.extra_queries = torch.zeros_like(self.clients), torch.zeros_like(self.clients)
        self.failed_queries = torch.zeros_like(self.clients)
        self.metrics: dict[str, Tensor] = {}
        self.scratch = Scratch(0) if scratch is None else scratch
        self._asked = 0
        self._vouched = self.clients, -1, self.clients

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def round(self) -> int:
        """The round of the order, from 0; for algorithms that are not the same in every round."""
        rounds = self._job.rounds
        if len(rounds) > 1:
            raise BrokenPromiseError(f"an algorithm that is the same in every round asked for it: {sorted(rounds)}")
        return next(iter(rounds))

    @property
    def network(self) -> Network:
        """What the clients' gradients are computed with."""
        if self._network is None:
            raise BrokenPromiseError("an algorithm for black boxes asked for gradients")
        return self._network

    @property
    def module(self) -> nn.Module:
        """The model that is trained; the parameters that it has itself are nobody's."""
        if self._problem.model is None:
            raise BrokenPromiseError("an algorithm for black boxes asked for the model")
        return self._problem.model.module

    @property
    def noisy(self) -> bool:
        """Whether steps know their examples by clipped gradients and noise alone, so that none is fused with them."""
        return self._noisy is not None and not self._noisy.plain

    def gradients(self, y: Stack, batch: Batch) -> tuple[Tensor, Stack]:
        """Losses [k], and what a local step of the k clients of a batch goes by: gradients, or what hides examples."""
        if self._noisy is None:
            return self.network.gradients(y, batch)
        return self._noisy.gradients(self.network, y, batch)

    @property
    def data(self) -> Examples:
        """The training examples of all clients."""
        if self._problem.data is None:
            raise BrokenPromiseError("an algorithm for black boxes asked for examples")
        return self._problem.data

    @property
    def dimension(self) -> int:
        """d, how many parameters there are."""
        return self._problem.dimension

    @property
    def trained(self) -> int:
        """How many of them, from the first, are trained; running statistics follow."""
        trained = self._problem.trained
        return self.dimension if trained is None else trained

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and values."""
        return self._problem.dtype

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The box [lower, upper]^d to which parameters belong; None: R^d."""
        return self._problem.bounds

    @property
    def config(self) -> Mapping[str, Scalar]:
        """Plain settings that the server sent."""
        return self._job.config

    def received(self, name: str) -> Tensor:
        """A vector of the order's payload; broadcasts against [C, d]."""
        return self._job.received(name)

    def stack(self, rows: Tensor) -> Stack:
        """A vector [d], or rows [C, d], as a stack of C rows, copied; with them what stays with each client."""
        if self.private is not None:
            rows = self.private.join(rows, self.state[PRIVATE])
        return self.network.layout.stack(rows, len(self))

    def parts(self, rows: Tensor) -> Stack:
        """Rows [k, d] as a stack that is views of them, of the model's parameters; of a black box's one."""
        return Stack([rows]) if self._network is None else shaped(rows, self._network.layout.shapes)

    @property
    def private(self) -> Private | None:
        """What of the model stays with each client; None: nothing does."""
        return None if self._problem.model is None else self._problem.model.private

    @property
    def stays(self) -> tuple[bool, ...]:
        """Of each leaf of the model, whether it stays with each client."""
        private = self.private
        return (False,) * len(self.network.layout.names) if private is None else private.stays

    @contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Within this block draws have names of their own: other mini-batches, other dropout than without it."""
        streams = self.streams
        self.streams = streams.apart(name)
        try:
            yield
        finally:
            self.streams = streams

    def keep(self, **state: Tensor) -> None:
        """Remember rows [C, ...] until these clients take part again."""
        self.state.update(state)

    def query(
        self, x: Tensor, batch: Batch | None = None, *, rows: Tensor | None = None, extra: bool = False
    ) -> Tensor:
        """Evaluate f_c at x [k, Q, d], for the first k clients or those in `rows`, int64 [k]: values [k, Q].

        Each is counted; extra: as no part of the method's published count. With examples f_c is the mean loss on
        `batch`, or without one on all of the client's own, dropout inactive. A call names the draws of a noisy black
        box, so where some rows may have nothing to ask, it is still made, with none of them.
        """
        asking: slice | Tensor = slice(len(x)) if rows is None else rows
        self.queries[asking] += x.shape[1]
        self.extra_queries[asking] += x.shape[1] if extra else 0
        self._asked += 1
        oracle = self._problem.oracle
        if oracle is not None:
            turn = self.turn[asking] if isinstance(self.turn, Tensor) else self.turn
            values = oracle.query(self.clients[asking], x, self.streams, turn, self._asked)
        elif (loop := self._loop(batch)) is not None:
            values = loop.values(self._queries(x, batch, asking))
        else:
            values = torch.empty(x.shape[:2], dtype=x.dtype, device=x.device)
            for part, y, data in self._repeated(x, batch, asking):
                values[:, part] = self.network.values(y, data).view(len(x), -1)
        if not surely_finite(values):
            self.failed_queries[asking] += (~torch.isfinite(values)).sum(dim=1)
        return values

    def differentiate(self, x: Tensor, v: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        """Values of f_c at x [k, d], [k], and derivatives along v [k, Q, d], [k, Q], by forward mode.

        Every direction counts as one evaluation. Where a layer has no forward mode, an InputError.
        """
        rows, count = slice(len(x)), v.shape[1]
        self.queries[rows] += count
        values, along = torch.empty(v.shape[:2], dtype=x.dtype, device=x.device), torch.empty_like(v[:, :, 0])
        points = x.unsqueeze(1).expand(-1, count, -1)
        try:
            for part, y, data in self._repeated(points, batch, rows):
                directions = self.network.layout.stack(v[:, part].flatten(0, 1))
                found, slopes = self.network.derivatives(y, directions, data)
                values[:, part], along[:, part] = found.view(len(x), -1), slopes.view(len(x), -1)
        except (NotImplementedError, RuntimeError) as error:
            if not any(words in str(error) for words in ("forward AD", "forward-mode AD", "jvp")):
                raise
            line = one_line(error, 160)
            raise InputError(
                "problem.model", "forward gradients", f"a layer of it has no forward mode, use queries instead ({line})"
            ) from error
        return values[:, 0], along

    def evaluate(self, y: Stack, batch: Batch) -> Tensor:
        """Values [k] of f_c on a batch at the k rows of a stack, each counted; large models are not copied."""
        self.queries[: len(y)] += 1
        loop = self._loop(batch)
        if loop is None:
            values = self.network.values(y, batch)
        else:
            values = loop.values(self._queries(y.flat().unsqueeze(1), batch, slice(len(y))))[:, 0]
        if not surely_finite(values):
            self.failed_queries[: len(y)] += ~torch.isfinite(values)
        return values

    def truth(self, x: Tensor) -> Tensor | None:
        """The gradient of F at the first k clients' points x [k, d], to judge estimates by; None: it is not known."""
        oracle = self._problem.oracle
        return None if oracle is None else oracle.truth(self.clients[: len(x)], x)

    def judge(self, params: Tensor, rule: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """A number for each example of each client, [C, largest], NaN beyond its last.

        params: the models that are asked, [d] or [C, d], dropout inactive. rule: from outputs [k, B, *places, K] and
        targets [k, B, *places] to numbers [k, B].
        """
        data, y = self.data, self.stack(params)
        found = torch.full((len(self), self.largest), torch.nan, dtype=self.dtype, device=self.examples.device)
        for begin in range(0, self.largest, JUDGED):
            rows = (self.examples > begin).nonzero().flatten()
            if not len(rows):
                break
            place = begin + torch.arange(JUDGED, device=rows.device)
            inside = place < self.examples[rows].unsqueeze(1)
            index = self._index(rows, torch.where(inside, place, 0))
            models = y if len(rows) == len(self) else Stack([leaf[rows] for leaf in y.leaves])
            values = rule(self.network.outputs(models, data.x[index]), data.y[index])
            columns = found[:, begin : begin + JUDGED]
            columns[rows] = values.where(inside, torch.nan)[:, : columns.shape[1]]
        return found

    def losses(self, params: Tensor) -> Tensor:
        """The mean loss of each client over all of its examples, [C]; params: as of `judge`, dropout inactive."""
        found = self.judge(params, self.network.loss.examples)
        inside = torch.arange(self.largest, device=found.device) < self.examples.unsqueeze(1)
        shares = inside.to(found.dtype) / self.examples.unsqueeze(1).to(found.dtype)
        return inner(Stack([torch.where(inside, found, 0.0)]), Stack([shares]))

    @property
    def largest(self) -> int:
        """The most examples that a client has, of all clients."""
        return self._problem.largest

    def scored(self, name: Hashable) -> Tensor:
        """What the problem's scores of that name say of each client's examples, [C, largest]; NaN beyond the last."""
        place = torch.arange(self.largest, device=self.examples.device)
        inside = place < self.examples.unsqueeze(1)
        index = self._index(torch.arange(len(self), device=place.device), torch.where(inside, place, 0))
        return self.data.scores[name].to(self.dtype)[index].where(inside, torch.nan)

    def class_counts(self) -> Tensor:
        """How many examples of each class each client has: int64 [C, K]. InputError: examples do not have one class."""
        data, classes = self.data, self.data.num_classes
        if not data.labelled:
            raise InputError("problem.dataset", data.task, "a client that counts classes needs one an example")
        owner = torch.repeat_interleave(torch.arange(len(self), device=self.examples.device), self.examples)
        place = torch.arange(len(owner), device=owner.device)
        place -= torch.repeat_interleave(self.examples.cumsum(0) - self.examples, self.examples)
        label = data.y[data.order[data.begin[self.clients][owner] + place]]
        return torch.bincount(owner * classes + label, minlength=len(self) * classes).view(len(self), classes)

    def _index(self, rows: Tensor, place: Tensor) -> Tensor:
        """The numbers of examples in the data: those at some places [k, B] of the clients in some rows, int64 [k]."""
        return self.data.order[self.data.begin[self.clients[rows]].unsqueeze(1) + place]

    def batches(
        self,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        course: Course | None = None,
        padded: bool = False,
    ) -> Iterator[Batch]:
        """The mini-batches of E epochs, of a course, or of so many independent steps; see `fedsim.engine.batches`.

        padded: keep the padding where one client is executed at a time, which otherwise does without.

        Batch s is for the first len(batch) rows of the cohort, those that have more than s steps to take. They are
        drawn, and count as taken, as they are asked for; within `apart` by its names, wherever they are taken.
        """
        plan = _at_least_two_wide(self.plan(epochs, steps, batch_size, course))
        batches = self._gather(plan, self.streams)
        if self.network.stacked or padded:
            return batches
        # Padding follows the examples of the one client, whose step s is row s: asked for once, not at each step.
        counts: list[int] = plan.count.clamp(min=1).tolist()  # of a batch without examples one, which counts nothing
        return (batch.cut(count) for batch, count in zip(batches, counts, strict=True))

    def sample(self, count: Tensor, name: str) -> Tensor:
        """Some of each client's examples, so many, int64 [C], drawn under a name: their places, int64 [C, largest].

        They are in random order, -1 beyond the last.
        """
        keys = self.streams.bits(name, self.clients, self.largest, turn=self.turn)
        place = torch.arange(self.largest, device=keys.device)
        order = keys.masked_fill(place >= self.examples.unsqueeze(1), 2**32).argsort(dim=1, stable=True)
        return order.masked_fill(place >= count.unsqueeze(1), -1)

    def everything(
        self, rows: Tensor, width: int, name: str, places: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Batch]]:
        """All examples of the clients in some rows, int64 [r], so many at once: which of the r, and their batch.

        Weights are 1 / n_c of all n_c examples. name: of the draws that are made for dropout. places: of which of each
        client's examples this is, as `sample` gives them, in that order; None: of all.
        """
        many = self.examples[rows] if places is None else (places[rows] >= 0).sum(dim=1)
        wide = max(2, width)  # see `_at_least_two_wide`
        for part, begin in enumerate(range(0, int(many.max()), wide)):
            some = (many > begin).nonzero().flatten()
            who = rows[some]
            place = begin + torch.arange(wide, device=rows.device)
            inside = place < many[some].unsqueeze(1)
            at = torch.where(inside, place, 0)
            index = self._index(who, at if places is None else places[who].gather(1, at))
            turn = self.turn[who] if isinstance(self.turn, Tensor) else self.turn
            draw = Draw(self.streams, self.clients[who], turn, part, within=f"{name}/")
            weight = inside.to(self.dtype) / many[some].unsqueeze(1).to(self.dtype)
            batch = Batch(self.data.x[index], self.data.y[index], weight, draw)
            yield some, batch if self.network.stacked else batch.cut(int(inside.sum()))

    def anybodys(self, place: Tensor, weight: Tensor) -> Batch:
        """Examples by their places in a row of everybody's, int64 [C, B], client by client, to be evaluated.

        For methods whose clients hold each other's; weight: [C, B].
        """
        index, draw = self.data.order[place], Draw(self.streams, self.clients, self.turn, 0)
        return Batch(self.data.x[index], self.data.y[index], weight, draw, evaluated=True)

    def first_steps(
        self, epochs: int | None, steps: int | None, batch_size: int | None, course: Course | None
    ) -> ClientPlan:
        """Which examples are in the first of these mini-batches of each client, none of which counts as taken."""
        batching = self._batching(None if epochs is None else 1, None if steps is None else 1, batch_size, course)
        return plan_clients(batching, self.network.compiled)

    def plan(self, epochs: int | None, steps: int | None, batch_size: int | None, course: Course | None) -> Plan:
        """Which examples are in the same mini-batches, whose steps count as taken."""
        return plan_batches(self._taking(epochs, steps, batch_size, course))

    def plan_clients(
        self, epochs: int | None, steps: int | None, batch_size: int | None, course: Course | None
    ) -> ClientPlan:
        """The same client by client, for a loop that takes all of a client's steps."""
        return plan_clients(self._taking(epochs, steps, batch_size, course), self.network.compiled)

    def _batching(
        self, epochs: int | None, steps: int | None, batch_size: int | None, course: Course | None
    ) -> Batching:
        """The cohort's examples in such batches."""
        return Batching(
            streams=self.streams,
            clients=self.clients,
            order=self.data.order,
            begin=self.data.begin[self.clients],
            examples=self.examples,
            epochs=epochs,
            steps=steps,
            batch_size=min(batch_size or self.largest, self.largest),
            turn=self.turn,
            course=course,
            capacity=None if self._noisy is None else self._noisy.capacity,
        )

    def _taking(self, epochs: int | None, steps: int | None, batch_size: int | None, course: Course | None) -> Batching:
        """The same, whose steps count as taken from now on."""
        batching = self._batching(epochs, steps, batch_size, course)
        self.steps_taken = self.steps_taken + batching.taken
        return batching

    def vouch(self, rows: Tensor, finite: Tensor) -> None:
        """Note which rows of a vector [C, d] are finite, bool [C], so that nobody has to look at all of its numbers."""
        self._vouched = rows, rows._version, finite

    def finite(self, payload: Mapping[str, Tensor]) -> Tensor:
        """Which clients' rows [C, ...] are finite in all of a payload, bool [C]."""
        rows, version, finite = self._vouched
        unknown = [value for value in payload.values() if value is not rows or value._version != version]
        if len(unknown) == len(payload):
            return finite_rows(unknown, self.clients)
        return finite & finite_rows(unknown, finite) if unknown else finite

    def _repeated(self, x: Tensor, batch: Batch | None, asking: slice | Tensor) -> Iterator[tuple[slice, Stack, Batch]]:
        """The points x [k, Q, d] in parts that fit into memory: which of Q, as a stack of rows, with their examples."""
        if not len(x):
            return
        data = self._all_examples(asking) if batch is None else batch
        numbers = max(1, data.x.numel(), x[:, 0].numel())
        width = max(1, GATHER // numbers)
        for begin in range(0, x.shape[1], width):
            part = slice(begin, min(begin + width, x.shape[1]))
            points = x[:, part]
            yield part, self.network.layout.stack(points.flatten(0, 1)), _each_repeated(data, points.shape[1])

    def _loop(self, batch: Batch | None) -> Compiled | None:
        """What evaluates models on a batch in one compiled loop, if something does."""
        loop = self.network.compiled
        own = batch is not None and batch.loss is not None
        return None if loop is None or own or not loop.evaluates else loop

    def _queries(self, x: Tensor, batch: Batch | None, asking: slice | Tensor) -> Queries:
        """The points x [k, Q, d] with the examples that their values are about, none of them copied."""
        data = self.data
        if batch is None:
            return Queries(x, data.x, data.y, data.order, data.begin[self.clients[asking]], self.examples[asking])
        index = torch.arange(batch.weight.numel(), device=x.device)
        count = (batch.weight > 0).sum(dim=1)
        return Queries(x, batch.x.flatten(0, 1), batch.y.flatten(0, 1), index, index[:: batch.weight.shape[1]], count)

    def _all_examples(self, asking: slice | Tensor) -> Batch:
        """All examples of some of the clients as one batch."""
        data, clients, examples = self.data, self.clients[asking], self.examples[asking]
        width = max(2, self.largest)  # not the cohort's: sums of another width have other last bits
        place = torch.arange(width, device=examples.device)
        inside = place < examples.unsqueeze(1)
        begin = data.begin[clients].unsqueeze(1)
        index = data.order[torch.where(inside, begin + place, begin)]
        weight = inside.to(self.dtype) / examples.unsqueeze(1).to(self.dtype)
        draw = Draw(self.streams, clients, 0, 0)  # of no use: these batches are evaluated only
        return Batch(data.x[index], data.y[index], weight, draw)

    def _gather(self, plan: Plan, streams: Streams) -> Iterator[Batch]:
        expected = None if plan.expected is None else plan.expected.to(self.dtype)
        x, y, shape, weights = self.data.x, self.data.y, plan.index.shape, plan.weights(self.dtype)
        numbers = max(1, x[0].numel() * shape[1])
        padded = plan.padded() if self.network.layout.normalises else [None] * len(plan.active)
        widths = plan.widths() if expected is not None and self.network.trims else [shape[1]] * len(plan.active)
        step = 0
        while step < len(plan.active):
            last, first_row = step, plan.start[step]
            while last < len(plan.active) and (
                last == step or (plan.start[last] + plan.active[last] - first_row) * numbers <= GATHER
            ):
                last += 1
            end_row = plan.start[last - 1] + plan.active[last - 1]
            index = plan.index[first_row:end_row, : max(widths[step:last])]
            xs = x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])
            ys = y.index_select(0, index.flatten()).view(*index.shape, *y.shape[1:])
            for number in range(step, last):
                begin, count = plan.start[number], plan.active[number]
                rows, wide = slice(begin - first_row, begin - first_row + count), widths[number]
                yield Batch(
                    xs[rows, :wide],
                    ys[rows, :wide],
                    weights[begin : begin + count, :wide],
                    Draw(streams, self.clients[:count], first(self.turn, count), number),
                    padded=padded[number],
                    expected=None if expected is None else expected[begin : begin + count],
                )
            step = last


def _at_least_two_wide(plan: Plan) -> Plan:
    """The plan with padding where batches have one example.

    Of a single client's single row, products would be made by another kernel than of several clients' rows, with other
    last bits.
    """
    if plan.index.shape[1] != 1:
        return plan
    return replace(plan, index=plan.index.repeat(1, 2))


def _each_repeated(batch: Batch, count: int) -> Batch:
    """The batch with each client's rows `count` times, one after the other."""
    if count == 1:
        return batch
    x, y, weight = (part.repeat_interleave(count, dim=0) for part in (batch.x, batch.y, batch.weight))
    return Batch(x, y, weight, batch.draw)


def first(index: Index, count: int) -> Index:
    """The numbers of the first `count` clients of a cohort."""
    return index[:count] if isinstance(index, Tensor) else index
