"""What every strategy and every client keeps to: a function for each promise, AssertionError where it is broken.

`CHECKS` are all that need no more than a subject; of these, `ON_FUNCTIONS` are also about subjects that are run on
functions. `OF_SERVERS` are about the server alone and `OF_CLIENTS` about clients alone: of subjects that share one of
them these say the same. `fedsim.testing.option_checks` has those about a single option.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import tomli_w
import torch
from numpy.typing import NDArray

from fedsim.configuration.tables import experiment
from fedsim.core.clock import ticks
from fedsim.core.errors import InputError
from fedsim.core.generators import seeded_globals
from fedsim.exchange.messages import Replies, Size, payload_bytes, total_bytes
from fedsim.exchange.windows import All, Every
from fedsim.running import promises
from fedsim.running.simulation import Simulation
from fedsim.server.strategy import ProblemView, ServerState
from fedsim.testing.draws import drawing, global_states
from fedsim.testing.executors import (
    compiled_equals_stacked,
    loop_equals_stacked,
    the_size_of_chunks_and_the_cores_change_no_bit,
)
from fedsim.testing.problems import Fewer, small_experiment
from fedsim.testing.questions import questions
from fedsim.testing.rounds import (
    Completed,
    Spoiled,
    copied,
    engine_of,
    everybody,
    exchange,
    fail,
    go_round,
    hear,
    same,
    take,
    without,
)
from fedsim.testing.subject import Course, Subject, final, part_ways, values_of
from fedsim.zeroth_order.search import MEASURE

CLIENT = 2
"""Who fails, is late or tells nonsense."""
LATE = 3.5
"""How many times as long as others a client works that is late."""
UNLIKELY = 54_021_907
"""A seed that nobody else takes, such as the number of a round."""
PATIENCE = 60
"""Rounds in which its reply must have come."""

Check = Callable[[Subject], None]


def inputs_stay_as_they_were(subject: Subject) -> None:
    """What a strategy is handed, its state and the replies, is left as it was."""
    simulation = subject.simulation()
    state, clients = simulation.state, everybody(simulation)
    while state.round < 2:
        before = copied(state)
        _, replies = exchange(simulation, state, clients)
        assert same(copied(state), before), "ask has changed the state that it was handed"
        told = copied(replies)
        following, _, done = hear(simulation, state, replies)
        assert same(copied(state), before), "tell has changed the state that it was handed"
        assert same(copied(replies), told), "tell has changed the replies that it was handed"
        state, clients = following, everybody(simulation) if done else replies.clients


def replies_in_any_order_give_the_same_bytes(subject: Subject) -> None:
    """Who of a window answers first does not matter: the last first leaves the same bytes."""
    ends = list[dict[str, Any]]()
    for direction in (1, -1):
        simulation = subject.simulation(torch.float32)
        take(simulation, lambda clients: 50 + direction * clients)  # noqa: B023
        ends.append(_found(simulation, go_round(simulation)))
    for name, first in ends[0].items():
        assert same(first, ends[1][name]), f"the {name} after a round depend on the order in which replies arrive"


def the_order_of_clients_in_an_order_does_not_matter(subject: Subject) -> None:
    """A shuffled cohort tells the same, to the last bit."""
    simulation, again = subject.simulation(torch.float32), subject.simulation(torch.float32)
    state, clients = simulation.state, everybody(simulation)
    shuffled = torch.cat((clients.flip(0)[1::2], clients.flip(0)[::2]))
    executor = engine_of(again).executor
    while state.round < 2:
        orders, replies = exchange(simulation, state, clients)
        other, _ = again.parts.strategy.ask(state, shuffled)
        work = executor.execute(executor.assign(replace(other, turn=orders.turn)))
        place = torch.searchsorted(orders.clients, other.clients)
        for name, rows in replies.payload.items():
            assert torch.equal(work.payload[name], rows[place]), f"a shuffled cohort tells another {name}"
        state, _, _ = hear(simulation, state, replies)


def an_interrupted_run_ends_like_an_uninterrupted_one(subject: Subject) -> None:
    """What was saved after two rows and restored elsewhere goes on as if nothing had happened."""
    whole = subject.simulation()
    orders, _ = whole.parts.strategy.ask(whole.state, everybody(whole))
    tables: dict[str, Any] = {"rounds": subject.tables.get("rounds", 3)}  # it goes on after two rows
    if orders.late == "keep" and "evaluation" not in subject.tables:
        tables["evaluation"] = {"every": 1}  # without it there is a row at the end only
    whole = subject.simulation(**tables)
    first, second = subject.simulation(**tables), subject.simulation(**tables)
    rows = [first.step(), first.step()]
    second.restore(first.snapshot())
    first.step()  # goes on after the snapshot, which must not notice
    rows += second
    expected = list(whole)
    assert torch.equal(second.state.params, whole.state.params), "a restored run ends elsewhere"
    for found, wanted in zip(rows, expected, strict=True):
        assert {**found, "wall": 0} == {**wanted, "wall": 0}


def the_same_seed_gives_the_same_bytes(subject: Subject) -> None:
    """Whatever the generators of the process are, which are left as they were."""
    expected = subject.end()
    with seeded_globals(UNLIKELY):
        before = global_states()
        found = final(subject.simulation())
        drawn = [module for module, state in global_states().items() if state != before[module]]
    assert not drawn, f"the global generator of {', '.join(drawn)} is drawn from; take a named stream"
    assert torch.equal(found, expected), "two runs with the same seed end elsewhere"


def another_seed_gives_other_bytes(subject: Subject) -> None:
    """Where anything is drawn. With everybody at work on all examples nothing is, but by the algorithm itself."""
    quiet: dict[str, Any] = {"rounds": 2, "selection": {"kind": "uniform", "fraction": 1.0}}
    client = subject.part(("client",))
    if any(option.name == "batch_size" for option in dataclasses.fields(client)):
        quiet["client"] = subject.table(("client",)) | {"batch_size": "full"}
    with suppress(InputError):  # of who must not work on all examples
        other, problem = Course(subject.simulation(**quiet, seed=1)), subject.problem()
        with drawing() as drawn:
            found = Course(subject.simulation(problem=problem, **quiet))
            if part_ways(found, other):
                return
        names = ", ".join(sorted(drawn))
        assert not drawn, f"another seed gives the same run, and {names} drew; take a named stream"
    assert part_ways(subject.course(), Course(subject.simulation(seed=1))), "another seed gives the same run"


def options_survive_toml(subject: Subject) -> None:
    """Written to a file and read again, the experiment and its plug-ins are what they were."""
    checked = small_experiment(**subject.tables)
    again = experiment(**tomllib.loads(tomli_w.dumps(checked.resolved())))
    assert again.resolved() == checked.resolved()
    for part in ("strategy", "client"):
        wanted = values_of(subject.given.get(part, getattr(checked, part)))
        for name, value in values_of(getattr(again, part)).items():
            assert value == wanted[name], f"{part}.{name} = {wanted[name]!r} is {value!r} when it is read again"
    assert again.transforms == checked.transforms


def windows_of_nobody_complete_the_round(subject: Subject) -> None:
    """The model stays if nobody answers the first window; the round ends if nobody answers a later one."""
    for silent in range(_windows(subject.described, subject.values_only)):
        simulation = subject.simulation()

        def heard(window: int, said: Replies) -> Replies:
            return said.where(torch.zeros(len(said), dtype=torch.bool)) if window == silent else said  # noqa: B023

        done = go_round(simulation, heard)
        assert [len(replies) for replies in done.replies[silent:]] == [0] * (len(done.replies) - silent)
        assert (done.state.round, done.state.phase) == (1, 0), "nobody answers, and the round is not over"
        assert torch.isfinite(done.state.params).all(), "nobody answers, and the model is not finite"
        if silent == 0:
            assert torch.equal(done.state.params, simulation.state.params), "nobody answers, and the model moves"


def a_cohort_of_one(subject: Subject) -> None:
    """A single client a round is enough, where no robust aggregator wants more, and there are not such rounds only.

    Or the strategy says, when it is asked, that it needs more.
    """
    if len(_asked(subject.described, subject.values_only)) == 1:
        return
    alone = subject.altered(("strategy",), subject.alone, selection={"kind": "uniform", "count": 1}, aggregation="mean")
    strategy: Any = alone.part(("strategy",))
    try:
        strategy.check(1, len(everybody(subject.simulation())), True)
    except InputError:
        return
    assert torch.isfinite(final(alone.simulation())).all()


def a_client_that_fails_is_as_if_it_had_not_answered(subject: Subject) -> None:
    """Whichever of the round's windows its machine fails in; the failure is counted."""
    for number in range(_windows(subject.described, subject.values_only)):
        simulation, client = subject.simulation(), _one(subject)

        def before(window: int) -> None:
            fail(simulation, client if window == number else -1)  # noqa: B023

        found = go_round(simulation, before=before)
        assert client not in found.replies[number].clients
        assert simulation.parts.engine.ledger.crashed == 1
        _hold_unheard(subject, simulation, found, number)


def a_late_reply_is_taken_later_or_left(subject: Subject) -> None:
    """Of a client that is told to stop it is as if it had not come; of others it is taken in a window to come."""
    simulation = subject.simulation()
    orders, window = simulation.parts.strategy.ask(simulation.state, everybody(simulation))
    length, client = window.seconds if isinstance(window, Every) else 1.0, _one(subject)

    def taken(clients: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(clients == client, ticks(LATE * length), ticks(length))

    if orders.late == "cancel":
        take(simulation, taken)
        found = go_round(simulation, window=All(2.0 * length))
        assert client not in found.replies[0].clients
        assert simulation.parts.engine.ledger.late == 1
        _hold_unheard(subject, simulation, found, 0)
        following = go_round(simulation, state=found.state).state
        assert torch.isfinite(following.params).all(), "a reply was late, and the model is not finite a round later"
        return
    waiting = isinstance(window, All) and window.deadline is None
    everyone = {"kind": "uniform", "fraction": 1.0}
    judged = {**subject.tables.get("evaluation", {}), "every": 1}
    simulation = subject.simulation(rounds=PATIENCE, selection=everyone, evaluation=judged)
    take(simulation, taken)
    for row in simulation:
        assert torch.isfinite(simulation.params).all(), "a reply was late, and the model is not finite"
        if row["staleness"] > 0 or waiting:
            return
    raise AssertionError(
        f"of a client that takes {LATE} times as long as others no reply was late in {PATIENCE} rounds"
    )


def an_update_that_is_not_finite_is_left_out_and_counted(subject: Subject) -> None:
    """NaN or infinite: as if the client had not answered, in any window; a step that is judged is not taken."""
    for value in (float("nan"), float("inf")):
        _hold_spoiled(subject, value)


def a_metric_that_is_nan_leaves_the_model_finite(subject: Subject) -> None:
    """Metrics are observations, which nobody looks through."""
    simulation = subject.simulation()
    spoiled = Spoiled(simulation, _one(subject), "metrics", float("nan"))
    spoiled.on = True
    assert torch.isfinite(go_round(simulation).state.params).all(), "a metric that is NaN enters the model"


def bytes_are_those_of_the_payloads(subject: Subject) -> None:
    """Down, unless the order says how its payload is encoded; then it says so for each client."""
    simulation = subject.simulation(torch.float32)
    ledger, state, clients = simulation.parts.engine.ledger, simulation.state, everybody(simulation)
    while state.round < 2:
        before = replace(ledger)
        orders, replies = exchange(simulation, state, clients)
        down = len(clients) * sum(vector.element_size() * vector.numel() for vector in orders.payload.values())
        chain = engine_of(simulation).executor.transforms
        plain = {name: Size.of(rows[0]) for name, rows in replies.payload.items()}
        up = total_bytes(chain.sizes(plain)) * int(orders.peers_of(replies.clients).sum())
        if orders.encoded is None:
            assert payload_bytes(orders.payload) * len(clients) == down
        else:
            shape = torch.as_tensor(orders.encoded).shape
            assert shape in ((), (len(clients),)), f"encoded has the shape {tuple(shape)}"
            down = orders.total_bytes
        crossed = ledger.since(before)
        assert (crossed["bytes_down"], crossed["bytes_up"]) == (down, up)
        state, _, done = hear(simulation, state, replies)
        clients = everybody(simulation) if done else replies.clients


def queries_are_what_was_asked(subject: Subject) -> None:
    """Of every window; and from the second round on, when everybody is known, as many as were declared."""
    for window in questions(subject):
        assert window.queries == window.counted, f"{window.queries} values are asked for, and {window.counted} counted"
        if window.declared is not None:
            assert window.queries == window.declared, f"{window.queries} are asked for, and {window.declared} declared"


def a_population_may_grow(subject: Subject) -> None:
    """Before the first round `resize` comes to what `init` makes of everybody; whenever clients come, they take part.

    Where its options do not go with that, `resize` says so, with an InputError.
    """
    simulation = subject.simulation()
    parts, clients = simulation.parts, everybody(simulation)
    first = clients[: len(clients) // 2 + 1]

    def begun(problem: ProblemView) -> ServerState:
        return parts.strategy.seeded(parts.strategy.init(problem), parts.streams)

    whole, sizes = begun(parts.problem), parts.problem.sizes[first]
    grown = _resized(simulation, begun(Fewer(parts.problem, torch.ones_like(sizes))))
    if grown is None:
        return
    for name, found in _known(grown).items():
        assert same(found, _known(whole)[name]), f"the {name} are not those with which a run of everybody begins"
    durations = parts.engine.declared(parts.strategy.ask(whole, clients)[0])
    few = parts.strategy.plan(begun(Fewer(parts.problem, sizes)), None if durations is None else durations[first])
    for window in range(_windows(subject.described, subject.values_only)):
        simulation, state, chosen = subject.simulation(), few, first
        while state.round < 2:
            _, replies = exchange(simulation, state, chosen)
            if (state.round, state.phase) == (1, window):
                grown = _resized(simulation, state)
                if grown is None:
                    return
                state = grown
            state, _, done = hear(simulation, state, replies)
            chosen = first if done else replies.clients
        again = _resized(simulation, state)
        assert again is not None
        assert same(_known(again), _known(state)), "resize changes a state that has grown already"
        found = go_round(simulation, state=go_round(simulation, state=state).state)
        assert found.replies[0].clients.tolist() == clients.tolist(), "clients that came later have not taken part"
        assert torch.isfinite(found.state.params).all(), "clients came later, and the model is not finite"


CHECKS: tuple[Check, ...] = (
    the_same_seed_gives_the_same_bytes,  # first, for who breaks it breaks most of the others
    inputs_stay_as_they_were,
    replies_in_any_order_give_the_same_bytes,
    the_order_of_clients_in_an_order_does_not_matter,
    loop_equals_stacked,
    compiled_equals_stacked,
    the_size_of_chunks_and_the_cores_change_no_bit,
    an_interrupted_run_ends_like_an_uninterrupted_one,
    another_seed_gives_other_bytes,
    options_survive_toml,
    windows_of_nobody_complete_the_round,
    a_cohort_of_one,
    a_client_that_fails_is_as_if_it_had_not_answered,
    a_late_reply_is_taken_later_or_left,
    an_update_that_is_not_finite_is_left_out_and_counted,
    a_metric_that_is_nan_leaves_the_model_finite,
    bytes_are_those_of_the_payloads,
    queries_are_what_was_asked,
    a_population_may_grow,
)
ON_FUNCTIONS: tuple[Check, ...] = (
    loop_equals_stacked,
    the_size_of_chunks_and_the_cores_change_no_bit,
    an_interrupted_run_ends_like_an_uninterrupted_one,
    queries_are_what_was_asked,
)
OF_SERVERS: tuple[Check, ...] = (
    inputs_stay_as_they_were,
    replies_in_any_order_give_the_same_bytes,
    windows_of_nobody_complete_the_round,
    a_cohort_of_one,
    a_client_that_fails_is_as_if_it_had_not_answered,
    a_late_reply_is_taken_later_or_left,
    an_update_that_is_not_finite_is_left_out_and_counted,
    a_metric_that_is_nan_leaves_the_model_finite,
    a_population_may_grow,
)
OF_CLIENTS: tuple[Check, ...] = (
    the_order_of_clients_in_an_order_does_not_matter,
    loop_equals_stacked,
    compiled_equals_stacked,
    the_size_of_chunks_and_the_cores_change_no_bit,
    queries_are_what_was_asked,
)


def _hold_unheard(subject: Subject, simulation: Simulation, done: Completed, window: int) -> None:
    """Hold a round to be what it is if `_one` is not heard in a window."""
    wanted = _unheard(subject.described, subject.values_only, window)
    assert (done.state.round, done.state.phase) == (1, 0)
    for name, found in _found(simulation, done).items():
        assert same(found, wanted[name]), f"the {name} are not as if the client had not answered"


@cache
def _asked(described: str, values_only: bool) -> list[int]:
    """Whom of everybody a strategy asks in the first window."""
    simulation = Subject(json.loads(described), values_only=values_only).simulation()
    orders, _ = simulation.parts.strategy.ask(simulation.state, everybody(simulation))
    return orders.clients.tolist()


def _one(subject: Subject) -> int:
    """Who fails, is late or tells nonsense: CLIENT, or where that is not asked the first who is."""
    asked = _asked(subject.described, subject.values_only)
    return CLIENT if CLIENT in asked else asked[0]


@cache
def _windows(described: str, values_only: bool) -> int:
    """How many windows a round has."""
    return len(go_round(Subject(json.loads(described), values_only=values_only).simulation()).replies)


@cache
def _unheard(described: str, values_only: bool, window: int) -> dict[str, Any]:
    """What a round comes to if `_one` is not heard in a window."""
    subject = Subject(json.loads(described), values_only=values_only)
    simulation = subject.simulation()
    done = go_round(simulation, without(_one(subject), window))
    assert (done.state.round, done.state.phase) == (1, 0)
    return _found(simulation, done)


def _found(simulation: Simulation, done: Completed) -> dict[str, Any]:
    """What a round has come to, in words: the model, what the strategy remembers, and what it then asks for."""
    orders, _ = simulation.parts.strategy.ask(done.state, everybody(simulation))
    return {**_known(done.state), "next orders": copied(orders)}


def _known(state: ServerState) -> dict[str, Any]:
    """What a server knows, in words."""
    return {
        "parameters": copied(state.params),
        "server optimizer's numbers": copied(dict(state.optimizer)),
        "strategy's numbers": copied(dict(state.memory)),
    }


def _resized(simulation: Simulation, state: ServerState) -> ServerState | None:
    """The state for everybody; None where the strategy's options do not go with clients that come later."""
    strategy, before = simulation.parts.strategy, _known(state)
    try:
        given = strategy.resize(state, simulation.parts.problem)
    except InputError:
        return None
    assert same(_known(state), before), "resize has changed the state that it was handed"
    return promises.resized(strategy, given, state)


def _hold_spoiled(subject: Subject, value: float) -> None:
    """Hold a subject to leave out an update one of whose numbers is this value, where it has any that can be."""
    for number in range(_windows(subject.described, subject.values_only)):
        simulation, client = subject.simulation(), _one(subject)
        spoiled = Spoiled(simulation, client, "payload", value)

        def before(window: int) -> None:
            spoiled.on = window == number  # noqa: B023

        found = go_round(simulation, before=before)
        if not spoiled.found:
            continue
        replies = found.replies[number]
        assert client not in replies.clients
        assert replies.failed.tolist() == [client]
        # Only the first window counts as taking part.
        assert simulation.parts.engine.ledger.failed == (number == 0)
        if found.actions[number] == MEASURE:
            assert torch.equal(found.state.params, simulation.state.params), "a step that nobody could judge is taken"
        else:
            _hold_unheard(subject, simulation, found, number)
