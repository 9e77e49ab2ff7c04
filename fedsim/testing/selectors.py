"""What every selector keeps to: twenty clients of whom some are free, in turns that are made by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.graph import decode, encode
from fedsim.core.streams import Streams
from fedsim.exchange.actions import UTILITY
from fedsim.exchange.messages import Free, Replies
from fedsim.running import promises
from fedsim.running.build import build_simulation
from fedsim.server.selection.base import SelectorState, Turn
from fedsim.testing.draws import drawing
from fedsim.testing.problems import small_experiment, small_problem
from fedsim.testing.rounds import copied, same
from fedsim.testing.specimen import Specimen

SIZES = torch.tensor([*range(1, 18), 0, 30, 2])
"""Examples of each client; one has none and is never free."""
ROUNDS = 12
SMALL = 6
"""Clients of `small_problem`, of whom it must be able to select some."""


@dataclass(frozen=True)
class Selection:
    """One selection. before, after: the state. asked: whose losses; scores: what they were. chosen: int64 [k]."""

    turn: Turn
    before: SelectorState
    asked: Tensor | None
    scores: Tensor | None
    chosen: Tensor
    after: SelectorState


class Choosing(Specimen):
    """A selector among clients of `SIZES`, whose losses, durations and utilities are numbers of their own."""

    group: ClassVar[str] = "selectors"

    def comes_to(self) -> Any:
        """Who is selected, what is remembered, and how many there are to be in populations of any size."""
        populations = [_numbers(self.plugin, population) for population in (1, SMALL, len(SIZES), 100)]
        seen = [(selection.chosen, selection.after) for selection in self.selections()]
        examples = self.plugin.score_examples
        return [populations, examples, seen, [selection.chosen for selection in self.selections(together=3)]]

    def selections(self, *, seed: int = 0, together: int | None = None, missing: float = 0.0) -> Iterator[Selection]:
        """Selections of some rounds, learning after each from the replies of who was chosen.

        together: how many are wanted, by default as many as it takes. missing: the share of scores that do not come.
        """
        state = self.plugin.start(SIZES.clone())
        for number in range(ROUNDS):
            selection = self.select(state, turn(number, together or self.wanted, seed=seed), missing=missing)
            yield selection
            state = self.plugin.observe(selection.after, replies(selection.chosen, number))

    def select(self, state: SelectorState, now: Turn, *, missing: float = 0.0) -> Selection:
        """One selection from a state."""
        asked = self.plugin.candidates(state, now)
        scores = None
        if asked is not None:
            scores = _losses(asked, now.round)
            scores[: round(missing * len(scores))] = torch.nan
        chosen, after = self.plugin.select(state, now, scores)
        return Selection(now, state, asked, scores, chosen, after)

    @property
    def wanted(self) -> int:
        """How many clients work at once."""
        return int(self.plugin.of(len(SIZES)))


def turn(
    number: int, wanted: int, *, seed: int = 0, free: Iterable[int] | None = None, population: int = len(SIZES)
) -> Turn:
    """A turn of a round from 0. free: who is, by default four fifths, others in each round. population: of so many."""
    mask = np.zeros(population, dtype=np.bool_)
    mask[[c for c in range(population) if c % 5 != number % 5] if free is None else list(free)] = True
    mask &= SIZES[:population].numpy() > 0
    mask.flags.writeable = False
    return Turn(Streams(seed), number, Free(mask, int(mask.sum())), wanted)


def replies(clients: Tensor, number: int, *, reverse: bool = False) -> Replies:
    """Of these clients, int64 [k], in a round; reverse: the last first."""
    clients = clients.flip(0) if reverse else clients
    losses = _losses(clients, number)
    return Replies(
        clients=clients,
        payload={UTILITY: losses.sqrt().float().unsqueeze(1)},
        metrics={"loss": losses.float()},
        examples=SIZES[clients],
        failed=torch.zeros(0, dtype=torch.int64),
        round=number,
        versions=torch.full_like(clients, max(0, number - 1)),
        durations=20 + 13 * clients % 17,
        orders=(),
        origin=(),
    )


def _losses(clients: Tensor, number: int) -> Tensor:
    return 3.0 - 0.1 * clients.double() + 0.3 * ((7 * clients + number) % 5)


def _numbers(selector: Any, population: int) -> tuple[int, int] | None:
    """How many it takes of a population, and how many at least; None where it refuses so few clients."""
    try:
        selector.check(population)
    except InputError:
        return None
    return int(selector.of(population)), int(selector.least(population))


def who_is_chosen_is_free(specimen: Choosing) -> None:
    """Ids int64 [k], ascending, each once, of clients that are free."""
    for selection in [*specimen.selections(), *specimen.selections(together=1)]:
        chosen = selection.chosen
        assert chosen.dtype == torch.int64, f"ids are {chosen.dtype}, not torch.int64"
        assert chosen.dim() == 1, f"ids have the shape {list(chosen.shape)}, not [k]"
        ids = chosen.tolist()
        assert ids == sorted(set(ids)), f"{ids} are not ascending, each once"
        busy = [client for client in ids if not selection.turn.free.mask[client]]
        assert not busy, f"clients {busy} are chosen and are not free"


def as_many_as_are_wanted(specimen: Choosing) -> None:
    """At most those wanted; at least `least`, or all that are free where they are too few."""
    least = specimen.plugin.least(len(SIZES))
    for wanted in (specimen.wanted, 1, 3):
        for selection in specimen.selections(together=wanted):
            number, bound = len(selection.chosen), min(least, wanted, selection.turn.free.count)
            assert bound <= number <= wanted, f"{number} are chosen where {wanted} are wanted, and {bound} at least"
    state = specimen.plugin.start(SIZES.clone())
    for free in ([], [4], [2, 4, 19], range(len(SIZES))):
        now = turn(0, len(SIZES), free=free)
        chosen = specimen.select(state, now).chosen.tolist()
        missed = sorted(set(np.flatnonzero(now.free.mask).tolist()) - set(chosen))
        bound = min(least, now.free.count)
        assert len(chosen) >= bound, f"clients {missed} are free and too few, and are not chosen"


def a_population_that_is_too_small_is_refused(specimen: Choosing) -> None:
    """`check` refuses it with an InputError, or `of` is no more than there are, and `least` no more than `of`."""
    for population in (1, 2, SMALL, len(SIZES), 1000):
        numbers = _numbers(specimen.plugin, population)
        if numbers is not None:
            of, least = numbers
            assert 0 <= least <= of <= population, f"of {population} clients {of} are to work, and {least} at least"
            assert of, f"of {population} clients nobody is to work"
    assert _numbers(specimen.plugin, SMALL), f"make it with options with which it selects among {SMALL} clients"


def inputs_stay_as_they_were(specimen: Choosing) -> None:
    """The state, the turn, the scores and the replies that it is handed."""
    state = specimen.plugin.start(SIZES.clone())
    for number in range(4):
        now, before = turn(number, specimen.wanted), copied(state)
        selection = specimen.select(state, now)
        assert same(copied(state), before), "a selection has changed the state that it was handed"
        if selection.scores is not None:
            assert selection.asked is not None
            unchanged = torch.equal(selection.scores, _losses(selection.asked, number))
            assert unchanged, "select has changed the scores that it was handed"
        told = replies(selection.chosen, number)
        after, heard = copied(selection.after), copied(told)
        state = specimen.plugin.observe(selection.after, told)
        assert same(copied(selection.after), after), "observe has changed the state that it was handed"
        assert same(copied(told), heard), "observe has changed the replies that it was handed"


def another_seed_chooses_otherwise(specimen: Choosing) -> None:
    """Where anything is drawn."""
    with drawing() as drawn:
        first = _chosen(specimen.selections())
    others = [_chosen(specimen.selections(seed=seed)) for seed in (1, 2, 3)]
    names = ", ".join(sorted(drawn))
    assert not names or others != 3 * [first], f"another seed chooses the same, and {names} drew; take a named stream"


def a_second_selection_of_a_round_is_another_draw(specimen: Choosing) -> None:
    """Where a seed decides, the same clients are not chosen again and again as long as the round lasts."""
    if _chosen(specimen.selections(together=1)) == _chosen(specimen.selections(together=1, seed=1)):
        return
    state, seen = specimen.plugin.start(SIZES.clone()), list[list[int]]()
    for _ in range(8):
        selection = specimen.select(state, turn(0, 1))
        state = selection.after
        seen.append(selection.chosen.tolist())
    assert seen != 8 * seen[:1], f"client {seen[0][0]} is drawn 8 times in a row; name draws by the selection, too"


def what_it_remembers_can_be_stored(specimen: Choosing) -> None:
    """Tensors by name, under the same names all the time, which a checkpoint can hold; it goes on from there."""
    stored: list[list[int]] = []
    state = specimen.plugin.start(SIZES.clone())
    names = set(state)
    for number in range(ROUNDS):
        for name, kept in state.items():
            assert isinstance(kept, Tensor), f"{name} is a {type(kept).__name__}, not a tensor"
            assert kept.device.type == "cpu", f"{name} is on {kept.device}, not on the CPU"
        assert set(state) == names, f"it remembers {', '.join(sorted(set(state) ^ names))} only some of the time"
        state = decode(encode(state))
        selection = specimen.select(state, turn(number, specimen.wanted))
        stored.append(selection.chosen.tolist())
        state = specimen.plugin.observe(selection.after, replies(selection.chosen, number))
    assert stored == _chosen(specimen.selections()), "what is read from a checkpoint chooses others"


def the_order_of_replies_does_not_matter(specimen: Choosing) -> None:
    """Clients that answer in another order teach it the same, up to rounding."""
    state = specimen.plugin.start(SIZES.clone())
    for number in range(4):
        selection = specimen.select(state, turn(number, specimen.wanted))
        state = specimen.plugin.observe(selection.after, replies(selection.chosen, number))
        other = specimen.plugin.observe(selection.after, replies(selection.chosen, number, reverse=True))
        for name, kept in state.items():
            equal = torch.allclose(kept.double(), other[name].double(), equal_nan=True)
            assert equal, f"{name} depends on the order of the replies"


def nobodys_replies_teach_nothing(specimen: Choosing) -> None:
    """A window without replies leaves what it remembers."""
    for selection in specimen.selections():
        told = replies(selection.chosen[:0], selection.turn.round)
        assert same(copied(specimen.plugin.observe(selection.after, told)), copied(selection.after))


def losses_are_asked_of_the_free_alone(specimen: Choosing) -> None:
    """Ids int64 [m], ascending, each once; and where no loss or only some come, it selects all the same."""
    for missing in (0.0, 0.5, 1.0):
        for selection in specimen.selections(missing=missing):
            if selection.asked is not None:
                ids = selection.asked.tolist()
                assert selection.asked.dtype == torch.int64, f"ids are {selection.asked.dtype}, not torch.int64"
                assert ids == sorted(set(ids)), f"{ids} are not ascending, each once"
                assert selection.turn.free.mask[ids].all(), f"of {ids} some are not free"
            some = len(selection.chosen) or not specimen.plugin.least(len(SIZES))
            assert some, f"nobody is chosen where {missing:.0%} of the losses have not come"
            assert selection.turn.free.mask[selection.chosen].all()


def a_population_may_grow(specimen: Choosing) -> None:
    """What it has learnt stays; new clients are as if they had been there and had never answered, and are chosen.

    Before the first selection `resize` comes to what `start` gives of the sizes that are known then.
    """
    selector, few = specimen.plugin, SIZES[:SMALL]
    grown, begun = _resized(selector, selector.start(torch.ones_like(few))), selector.start(SIZES.clone())
    for name, kept in begun.items():
        assert same(copied(grown[name]), copied(kept)), f"{name} is not what start gives where more clients are known"
    learnt, whole = selector.start(few.clone()), selector.start(SIZES.clone())
    for number in range(4):
        told = replies(torch.arange(number % 2, SMALL, 2), number)
        learnt, whole = selector.observe(learnt, told), selector.observe(whole, told)
    grown = _resized(selector, learnt)
    for name, kept in whole.items():
        equal = grown[name].shape == kept.shape and torch.allclose(grown[name].double(), kept.double(), equal_nan=True)
        assert equal, f"{name} is not as if the new clients had been there and had never answered"
    state = selector.start(few.clone())
    for number in range(4):
        selection = specimen.select(state, turn(number, int(selector.of(SMALL)), population=SMALL))
        state = selector.observe(selection.after, replies(selection.chosen, number))
    state = _resized(selector, state)
    for number, free in enumerate((range(SMALL, len(SIZES)), None, None), start=4):
        now = turn(number, specimen.wanted, free=free)
        chosen = (selection := specimen.select(state, now)).chosen
        assert len(chosen) or not selector.least(len(SIZES)), "nobody is chosen where later clients are free"
        assert now.free.mask[chosen].all(), f"of {chosen.tolist()} some are not free"
        state = selector.observe(selection.after, replies(chosen, number))


def _resized(selector: Any, state: SelectorState) -> SelectorState:
    """The state for all clients."""
    before, sizes = copied(state), SIZES.clone()
    given = promises.selector_state(selector, selector.resize(state, sizes), "resize", state)
    assert same(copied(state), before), "resize has changed the state that it was handed"
    assert torch.equal(sizes, SIZES), "resize has changed the sizes that it was handed"
    return given


def it_selects_in_runs(specimen: Choosing) -> None:
    """Synchronous ones and others, which go on after an interruption as if there had been none."""
    unknown = specimen.plugin.reports - {UTILITY}
    assert not unknown, f"replies cannot carry {', '.join(sorted(unknown))} for it; they can carry {UTILITY}"
    for tables in (SYNCHRONOUS,) if specimen.plugin.synchronous else (SYNCHRONOUS, ASYNCHRONOUS):
        experiment = small_experiment(rounds=6, selection=specimen.table, evaluation={"every": 1}, **tables)
        whole, first, second = (build_simulation(experiment, small_problem()) for _ in range(3))
        rows = [first.step(), first.step()]
        second.restore(decode(encode(first.snapshot())))
        rows += second
        for found, wanted in zip(rows, whole, strict=True):
            assert {**found, "wall": 0} == {**wanted, "wall": 0}, "an interrupted run goes on otherwise"


SYNCHRONOUS: Mapping[str, Any] = {}
ASYNCHRONOUS: Mapping[str, Any] = {
    "strategy": {"kind": "fedbuff", "size": 1},
    "devices": {"compute": {"kind": "lognormal", "median": 1.0, "sigma": 0.5}},
}


def _chosen(selections: Iterable[Selection]) -> list[list[int]]:
    return [selection.chosen.tolist() for selection in selections]


CHECKS = (
    who_is_chosen_is_free,
    as_many_as_are_wanted,
    a_population_that_is_too_small_is_refused,
    inputs_stay_as_they_were,
    another_seed_chooses_otherwise,
    a_second_selection_of_a_round_is_another_draw,
    what_it_remembers_can_be_stored,
    the_order_of_replies_does_not_matter,
    nobodys_replies_teach_nothing,
    losses_are_asked_of_the_free_alone,
    a_population_may_grow,
    it_selects_in_runs,
)
