"""What every transform keeps to: messages of two vectors of named draws, and runs in which replies and orders cross."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self
from unittest.mock import patch

import torch
from torch import Tensor

from fedsim.compression.top_k import TopK
from fedsim.core.options import options
from fedsim.core.streams import Streams
from fedsim.exchange import transforms
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Chain, Crossed, Sender, Transform, Vector
from fedsim.running.build import build_simulation
from fedsim.testing.draws import drawing
from fedsim.testing.problems import small_experiment, small_problem
from fedsim.testing.rounds import copied, differ, engine_of, same
from fedsim.testing.specimen import Specimen
from fedsim.testing.subject import final

CLIENTS = torch.tensor([4, 0, 7, 2, 9])
SHAPES = ((8, 4), (8,))
"""Of the parameters of a small model."""
LENGTH = 40
SECOND = "second"
"""The name of a vector beside the change."""
ANNEX = 800
"""Bits that cross beside each vector in some messages."""
SMALL = 2**12
"""Messages of a single number that are told apart by what arrives."""
MANTISSA = 24
"""Bits of a single-precision number that say which of equally likely ones it is: no code shortens them."""


@options
class Annex(Transform):
    """Adds bits that say nothing."""

    def size(self, before: Size) -> Size:
        """See `Transform`."""
        return replace(before, beside=before.beside + ANNEX)

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        return vector.coded(vector.rows, self.size(vector.size))


class Crossing(Specimen):
    """A transform that goes over the change, and where its options say so over a second vector."""

    group: ClassVar[str] = "transforms"

    def __init__(self, plugin: Any) -> None:
        super().__init__(plugin)
        self.bound: Transform = plugin.bound(SHAPES)

    def altered(self, options: Mapping[str, Any]) -> Self:
        """See `Specimen`."""
        other = super().altered(options)
        other.bound = other.plugin.bound(SHAPES)
        return other

    def comes_to(self) -> Any:
        """What arrives, what it took and what is remembered, three times in a row."""
        crossed, state = list[Any](), None
        for turn in range(3):
            sent = self.send(drawn(turn), turn=turn, state=state)
            crossed.append((sent.payload, sent.nbytes, sent.state))
            state = sent.state
        return [crossed, self.chain.sizes({"delta": Size(LENGTH, 64)})["delta"].nbytes]

    @property
    def chain(self) -> Chain:
        """It alone, of a model of a matrix and a vector; what feeds back stands before a compressor."""
        return Chain((self.bound, *self.followers))

    @property
    def followers(self) -> tuple[Transform, ...]:
        """What has to stand after it."""
        return (TopK(k=3, vectors=self.plugin.vectors),) if self.plugin.feeds_back else ()

    @property
    def tables(self) -> list[dict[str, Any]]:
        """What names it, and what has to stand after it, in an experiment file."""
        return [self.table, *({"kind": "top_k", "k": 3} for _ in self.followers)]

    @property
    def covered(self) -> tuple[str, ...]:
        """The vectors that it goes over."""
        return tuple(self.plugin.vectors or ("delta",))

    def send(
        self,
        payload: Mapping[str, Tensor],
        *,
        clients: Tensor = CLIENTS,
        turn: int | Tensor = 0,
        state: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        before: tuple[Transform, ...] = (),
    ) -> Crossed:
        """Send a message. state: what the clients remember, by default nothing yet. before: transforms before it."""
        chain = Chain((*before, *self.chain.transforms))
        return chain.apply(payload, Sender(clients, Streams(seed), turn, state or fresh(chain, payload)))


def fresh(chain: Chain, payload: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What clients remember who have sent nothing."""
    rows = payload["delta"]
    shapes = chain.state(Size(rows.shape[1], 8 * rows.element_size()))
    return {name: rows.new_zeros((len(rows), *shape)) for name, shape in shapes.items()}


def drawn(turn: int = 0, dtype: torch.dtype = torch.float64, length: int = LENGTH) -> dict[str, Tensor]:
    """Two vectors of five clients, [5, n] each."""
    streams = Streams(0)
    return {name: streams.normal(name, CLIENTS, (length,), turn=turn, dtype=dtype) for name in ("delta", SECOND)}


def what_arrives_has_the_form_of_what_was_sent(specimen: Crossing) -> None:
    """Names, shapes and types; finite where that is; also of nobody, of a single number, of zeros and of huge ones."""
    for dtype in (torch.float32, torch.float64):
        for payload, said in (
            (drawn(dtype=dtype), "normal numbers"),
            (drawn(dtype=dtype, length=1), "a single number"),
            ({name: 0 * rows for name, rows in drawn(dtype=dtype).items()}, "zeros"),
            ({name: 1e30 * rows for name, rows in drawn(dtype=dtype).items()}, "numbers of about 1e30"),
        ):
            for clients in (CLIENTS, CLIENTS[:0]):
                sent = {name: rows[: len(clients)] for name, rows in payload.items()}
                arrived = specimen.send(sent, clients=clients).payload
                assert arrived.keys() == sent.keys(), f"of {', '.join(sent)} there arrive {', '.join(arrived)}"
                for name, rows in sent.items():
                    form = (arrived[name].shape, arrived[name].dtype)
                    assert form == (rows.shape, rows.dtype), f"{name} {list(rows.shape)} {dtype} arrives as {form}"
                    assert torch.isfinite(arrived[name]).all(), f"{said} do not arrive as finite ones"


def inputs_stay_as_they_were(specimen: Crossing) -> None:
    """The vectors, and what the clients remember."""
    payload = drawn()
    state = specimen.send(payload).state or fresh(specimen.chain, payload)
    told, kept = copied(payload), copied(state)
    specimen.send(payload, state=state, turn=1)
    assert same(copied(payload), told), "it has changed the vectors that it was handed"
    assert same(copied(state), kept), "it has changed what the clients remember; hand the new state to `coded`"


def a_client_is_transformed_alike_in_any_company(specimen: Crossing) -> None:
    """To the last bit, whoever else is in its cohort, in blocks of any size, and beside one whose work has failed."""
    payload, turns = drawn(), torch.tensor([3, 0, 1, 3, 2])
    expected = specimen.send(payload, turn=turns)
    for rows in ([2], [3, 1], [4, 0, 2]):
        own = {name: vector[rows] for name, vector in payload.items()}
        _hold_alike(specimen.send(own, clients=CLIENTS[rows], turn=turns[rows]), expected, rows, "in another cohort")
    with patch.object(transforms, "BLOCK", 2 * LENGTH):
        _hold_alike(specimen.send(payload, turn=turns), expected, list(range(5)), "in smaller blocks")
    failed = {name: vector.clone() for name, vector in payload.items()}
    for vector in failed.values():
        vector[1] = torch.nan
    crossed = specimen.send(failed, turn=turns)
    others = [0, 2, 3, 4]
    alone = {name: rows[others] for name, rows in crossed.payload.items()}
    kept = {name: rows[others] for name, rows in crossed.state.items()}
    _hold_alike(Crossed(alone, crossed.nbytes[others], kept), expected, others, "beside one that is not finite")


def _hold_alike(found: Crossed, expected: Crossed, rows: list[int], where: str) -> None:
    for name, vector in expected.payload.items():
        assert torch.equal(found.payload[name], vector[rows]), f"{where} a client's {name} arrives otherwise"
    assert torch.equal(found.nbytes, expected.nbytes[rows]), f"{where} a client's vectors take other bytes"
    for name, kept in expected.state.items():
        assert torch.equal(found.state[name], kept[rows]), f"{where} a client remembers another {name}"


def bytes_are_counted_for_each_client(specimen: Crossing) -> None:
    """At least none; and what crosses beside a vector already goes on to cross, and is declared to."""
    for dtype in (torch.float32, torch.float64):
        payload = drawn(dtype=dtype)
        crossed = specimen.send(payload)
        assert bool((crossed.nbytes >= 0).all()), f"{int(crossed.nbytes.min())} bytes are fewer than none"
        annex, more = Annex(vectors=specimen.covered), len(specimen.covered) * ANNEX // 8
        beside = specimen.send(payload, before=(annex,))
        assert torch.equal(beside.nbytes, crossed.nbytes + more), (
            f"{more} bytes that cross beside become {(beside.nbytes - crossed.nbytes).tolist()}; add to `before.beside`"
        )
        plain = {name: Size(LENGTH, 8 * rows.element_size()) for name, rows in payload.items()}
        most, declared = (
            sum(int(size.nbytes) for size in Chain(listed).sizes(plain).values())
            for listed in (specimen.chain.transforms, (annex, *specimen.chain.transforms))
        )
        assert declared == most + more, "`size` loses what crosses beside"


def bytes_are_enough_for_what_arrives(specimen: Crossing) -> None:
    """Of n bytes there are 256^n messages, so no more can be told apart; random numbers as they are take their bits."""
    clients = torch.zeros(SMALL, dtype=torch.int64)  # one client, which draws the same for each
    rows = Streams(0).normal("numbers", torch.arange(SMALL), (1,), dtype=torch.float32)
    crossed = specimen.send({"delta": rows}, clients=clients)
    for nbytes in torch.unique(crossed.nbytes).tolist():
        found = len(torch.unique(crossed.payload["delta"][crossed.nbytes == nbytes]))
        assert found <= 256**nbytes, f"{found} different numbers arrive in messages of {nbytes} bytes"
    payload = {name: rows for name, rows in drawn(dtype=torch.float32).items() if name in specimen.covered}
    crossed = specimen.send(payload)
    alike = torch.stack([(crossed.payload[name] == rows).sum(dim=1) for name, rows in payload.items()]).sum(dim=0)
    short = bool((8 * crossed.nbytes < MANTISSA * alike).any())
    assert not short, f"{int(alike.max())} numbers arrive as they were sent, in {int(crossed.nbytes.min())} bytes"


def draws_are_named(specimen: Crossing) -> None:
    """Where a seed decides what arrives, so do the turn and the client, and each vector is drawn for by itself."""
    rows = drawn()["delta"][:1].expand(len(CLIENTS), LENGTH)
    payload = {"delta": rows, SECOND: rows}
    with drawing() as found:
        first = specimen.send(payload).payload
    others = [specimen.send(payload, seed=seed).payload for seed in (1, 2, 3)]
    names = ", ".join(sorted(found))
    if all(same(copied(other), copied(first)) for other in others):
        assert not names, f"another seed changes nothing, and {names} drew; take `Vector.draw`"
        return
    later = [specimen.send(payload, turn=turn).payload for turn in (1, 2, 3)]
    assert not all(same(copied(other), copied(first)) for other in later), "every turn draws the same"
    for name in specimen.covered:
        assert len(torch.unique(first[name], dim=0)) > 1, "all clients draw the same"
    both = specimen.altered({"vectors": ("delta", SECOND)})
    arrived = both.send(payload).payload
    assert not torch.equal(arrived["delta"], arrived[SECOND]), "two vectors are drawn for alike; take `Vector.draw`"


def it_transforms_in_runs(specimen: Crossing) -> None:
    """Replies, stacked or one by one, in a run that goes on after an interruption; and orders."""
    tables: dict[str, Any] = {"rounds": 4, "evaluation": {"every": 1}, "transforms": specimen.tables}
    if specimen.plugin.vectors is not None:
        tables["transforms"] = [table | {"vectors": ["delta"]} for table in specimen.tables]
    whole, first, second, loop = (
        build_simulation(small_experiment(**tables | more), small_problem())
        for more in ({}, {}, {}, {"engine": {"executor": "loop"}})
    )
    executor = engine_of(loop).executor
    executor.memory = executor._row_bytes  # a cohort each
    rows = [first.step(), first.step()]
    second.restore(first.snapshot())
    rows += second
    for found, wanted in zip(rows, whole, strict=True):
        assert {**found, "wall": 0} == {**wanted, "wall": 0}, "an interrupted run goes on otherwise"
    assert not differ(final(loop), whole.state.params), "executed one by one clients send something else"
    ordered = [table | {"vectors": ["params"]} for table in tables["transforms"]]
    orders = build_simulation(small_experiment(rounds=1, order_transforms=ordered), small_problem(torch.float32))
    sizes = orders.parts.order_transforms.sizes({"params": Size.of(orders.state.params)})
    assert orders.step()["bytes_down"] <= 4 * int(sizes["params"].nbytes), "an order takes more than is declared"


CHECKS = (
    what_arrives_has_the_form_of_what_was_sent,
    inputs_stay_as_they_were,
    a_client_is_transformed_alike_in_any_company,
    bytes_are_counted_for_each_client,
    bytes_are_enough_for_what_arrives,
    draws_are_named,
    it_transforms_in_runs,
)
