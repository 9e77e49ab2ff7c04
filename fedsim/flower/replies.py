"""What a node has sent, held to what it was asked for. A node is not trusted: nothing is read before it fits.

Counts that go into the ledger are the server's own where the order settles them, and within its limits else.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedsim.core.errors import one_line
from fedsim.engine.executor import Executor
from fedsim.engine.job import JobResult
from fedsim.exchange.actions import REPORT_UTILITY, SCORE
from fedsim.exchange.forms import Form, forms_of, misfit
from fedsim.exchange.messages import Order, usable_rows
from fedsim.flower.names import ARRAYS, EXAMPLES, METRICS
from fedsim.flower.records import CLIENT_METRICS, CLIENTS, NBYTES, QUERIES, SOUND, announced, decoded


class RefusedError(ValueError):
    """A reply that is not what was asked for: in what, in words without its sender."""


def reason_of(reply: Message) -> str:
    """What an error reply says, without where in the client's code it was."""
    said = (reply.error.reason or "").strip() or "no reason given"
    return one_line(said.splitlines()[0], 200)


@dataclass(frozen=True)
class Asked:
    """What an order asks k clients for.

    clients: int64 [k]; examples: int64 [k], how many each has. nothing: nobody's reply, whose tensors [0, ...] have the
    names, types and shapes. queries: the least and the most evaluations of a client; nbytes: the same of its payload.
    extra: of the evaluations, those outside the published count.
    """

    clients: Tensor
    examples: Tensor
    nothing: JobResult
    queries: tuple[int, int]
    extra: int
    nbytes: tuple[int, int]

    def read(self, content: RecordDict, device: torch.device) -> JobResult:
        """A reply as tensors on a device; rows that are not finite are marked. RefusedError: it is no reply to this."""
        count = len(self.clients)
        payload = _read(content.array_records.get(ARRAYS), forms_of(self.nothing.payload, count))
        metrics = _read(content.array_records.get(CLIENT_METRICS), self._metrics())
        clients, examples, nbytes, queries = (metrics.pop(name) for name in (CLIENTS, EXAMPLES, NBYTES, QUERIES))
        if not torch.equal(clients, self.clients):
            raise RefusedError(f"it is of clients {clients.tolist()[:20]}, not {self.clients.tolist()[:20]}")
        other = (examples != self.examples).nonzero().flatten().tolist()
        if other:
            row = other[0]
            had = f"{int(examples[row])} examples on its node and {int(self.examples[row])} on the server"
            raise RefusedError(f"client {int(clients[row])} has {had}; give all machines the same data")
        asked, extra, failed = queries.unbind(1)
        _hold_within("queries", asked, self.queries)
        _hold_within("extra queries", extra, (self.extra, self.extra))
        _hold_within("bytes", nbytes, self.nbytes)
        if bool(((failed < 0) | (failed > asked)).any()):
            raise RefusedError(f"its failed queries are {failed.tolist()[:20]} of {asked.tolist()[:20]}")
        finite = usable_rows(payload, queries)
        if not payload:
            finite &= metrics.pop(SOUND)
        there = {name: rows.to(device) for name, rows in payload.items()}
        return JobResult(there, {name: rows.to(device) for name, rows in metrics.items()}, finite, nbytes, queries)

    def unread(self) -> JobResult:
        """What stands in place of a reply that was refused: rows that nobody reads, none finite, with our counts."""
        count = len(self.clients)

        def rows(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: nothing.new_zeros((count, *nothing.shape[1:])) for name, nothing in named.items()}

        queries = torch.zeros((count, 3), dtype=torch.int64)
        queries[:, 0], queries[:, 1] = self.queries[0], self.extra
        nbytes = torch.full((count,), self.nbytes[1])
        finite = torch.zeros(count, dtype=torch.bool)
        return JobResult(rows(self.nothing.payload), rows(self.nothing.metrics), finite, nbytes, queries)

    def _metrics(self) -> dict[str, Form]:
        count = len(self.clients)
        ours = {name: Form("int64", (count,)) for name in (CLIENTS, EXAMPLES, NBYTES)}
        ours[QUERIES] = Form("int64", (count, 3))
        if not self.nothing.payload:
            ours[SOUND] = Form("bool", (count,))
        return forms_of(self.nothing.metrics, count) | ours


class Asking:
    """What orders ask for, of nobody yet. executor: says what they come to; it does no work of clients."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._nothing: dict[Hashable, JobResult] = {}  # by what an order says that it asks for

    def __call__(self, orders: Order) -> Asked:
        """What an order asks for."""
        executor, nobody = self._executor, torch.zeros(0, dtype=torch.int64)
        shapes = tuple((name, tuple(vector.shape)) for name, vector in sorted(orders.payload.items()))
        kind = (orders.action, tuple(sorted(orders.config.items())), shapes)
        job = executor.assign(replace(orders, clients=nobody))
        if kind not in self._nothing:
            self._nothing[kind] = executor.execute(job)
        asked = job.cost.queries
        if executor.network is None:
            asked += (orders.action == SCORE) + bool(orders.config.get(REPORT_UTILITY))
        # With transforms what a reply takes may depend on its numbers.
        least = 0 if executor.transforms.transforms else job.encoded
        queries, nbytes = (asked, asked + job.cost.first), (least, job.encoded)
        return Asked(nobody, nobody, self._nothing[kind], queries, job.cost.extra, nbytes)


def metrics_of(content: RecordDict) -> MetricRecord:
    """The metrics of a reply: its only record of them, or the one of that name. RefusedError: there is none."""
    held = {name: record for name, record in content.items() if isinstance(record, MetricRecord)}
    if len(held) == 1:
        return next(iter(held.values()))
    if METRICS not in held:
        raise RefusedError(f"it has {len(held)} records of metrics, of which none is called {METRICS}")
    return held[METRICS]


def arrays_of(content: RecordDict) -> dict[str, ArrayRecord]:
    """The records of arrays of a message; Flower's own view of them takes twenty times as long to make."""
    return {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}


def _read(held: ArrayRecord | None, forms: Mapping[str, Form]) -> dict[str, Tensor]:
    """A record's tensors in the order of the forms, on the CPU."""
    if held is None:
        raise RefusedError("a record is missing")
    why = misfit(announced(held), forms)
    if why is not None:
        raise RefusedError(why)
    found = dict[str, Tensor]()
    for name, form in forms.items():
        try:
            found[name] = decoded(held[name], form)
        except ValueError as error:
            raise RefusedError(f"{name}: {error}") from error
    return found


def state_of(content: RecordDict, record: str, shapes: Mapping[str, Form]) -> dict[str, Tensor]:
    """What clients remember, as their node hands it over: `CLIENTS` int64 [k] and [k, ...] by name.

    shapes: of one client's, by name. RefusedError: it is no such thing.
    """
    held = content.array_records.get(record)
    clients = None if held is None else held.get(CLIENTS)
    if clients is None or len(clients.shape) != 1:
        raise RefusedError("it does not say whose memory it sends")
    count = int(clients.shape[0])
    forms = {name: Form(form.dtype, (count, *form.shape)) for name, form in shapes.items()}
    return _read(held, {CLIENTS: Form("int64", (count,)), **forms})


def _hold_within(what: str, found: Tensor, limits: tuple[int, int]) -> None:
    least, most = limits
    if bool(((found < least) | (found > most)).any()):
        wanted = str(least) if least == most else f"{least} to {most}"
        raise RefusedError(f"its {what} are {found.tolist()[:20]}, not {wanted} a client")
