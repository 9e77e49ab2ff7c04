"""What every aggregator keeps to: rows [C, d] and weights [C] of named draws, in cohorts of one to twelve."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.running.build import build_simulation
from fedsim.testing.problems import small_experiment, small_problem
from fedsim.testing.rounds import go_round, take
from fedsim.testing.specimen import Specimen

LARGEST = 12
"""Rows, of which every aggregator must be able to do with the most."""
LONG = 70_001
"""Numbers of a row whose sum PyTorch shares among threads."""
THREADS = (1, 2, 3)
HUGE = 1e30
"""What rows in single precision are multiplied by; the squares of such numbers are beyond it."""


class Combining(Specimen):
    """An aggregator that is handed rows."""

    group: ClassVar[str] = "aggregators"

    def comes_to(self) -> Any:
        """Centres of rows without and with outliers, and which cohorts it takes."""
        centres = []
        for count in self.cohorts:
            rows, weights = drawn(count)
            centres.append(self.plugin(rows, weights))
            rows[0] *= 1000.0
            centres.append(self.plugin(rows, weights))
        return [self.cohorts, centres]

    @property
    def cohorts(self) -> list[int]:
        """How many rows it says it can do with, up to `LARGEST`."""
        return [count for count in range(1, LARGEST + 1) if self._takes(count)]

    def _takes(self, count: int) -> bool:
        try:
            self.plugin.check(count)
        except InputError:
            return False
        return True


def drawn(count: int, dimension: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Rows [C, d] around zero, and weights [C] between 1 and 2."""
    streams, clients = Streams(0), torch.arange(count)
    rows = streams.normal("rows", clients, (dimension,), dtype=dtype)
    return rows, 1 + streams.uniform("weights", clients, dtype=dtype)


def a_centre_is_one_row(specimen: Combining) -> None:
    """Of the length and the type of the rows, and finite, in each cohort that `check` lets pass."""
    for dtype in (torch.float32, torch.float64):
        for count in specimen.cohorts:
            rows, weights = drawn(count, dtype=dtype)
            centre = specimen.plugin(rows, weights)
            assert centre.shape == (5,), f"of rows [{count}, 5] the centre has the shape {list(centre.shape)}"
            assert centre.dtype == dtype, f"the centre of rows {dtype} is {centre.dtype}"
            assert torch.isfinite(centre).all(), f"the centre of {count} finite rows is not finite"


def inputs_stay_as_they_were(specimen: Combining) -> None:
    """The rows and the weights that it is handed."""
    for count in specimen.cohorts:
        rows, weights = drawn(count)
        specimen.plugin(rows, weights)
        before = drawn(count)
        assert torch.equal(rows, before[0]), "it has changed the rows that it was handed"
        assert torch.equal(weights, before[1]), "it has changed the weights that it was handed"


def the_order_of_rows_does_not_matter(specimen: Combining) -> None:
    """Clients in another order have the same centre, up to rounding."""
    for count in specimen.cohorts:
        rows, weights = drawn(count)
        centre = specimen.plugin(rows, weights)
        for seed in range(3):
            order = Streams(seed).permutation("order", torch.tensor([0]), count)[0]
            other = specimen.plugin(rows[order], weights[order])
            assert torch.allclose(other, centre, rtol=1e-9, atol=1e-9), f"{count} rows in another order have another"


def equal_rows_give_that_row(specimen: Combining) -> None:
    """Where all clients send the same, that is the centre, whatever the weights."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        for count in specimen.cohorts:
            rows, weights = drawn(count, dtype=dtype)
            centre = specimen.plugin(rows[:1].expand(count, 5), weights)
            far = float((centre - rows[0]).abs().max())
            assert far <= tolerance, f"{count} equal rows have a centre that is {far:.2g} away from them"


def weights_are_shares(specimen: Combining) -> None:
    """Weights times seven give the same centre; and where all are zero the rows count equally."""
    for count in specimen.cohorts:
        rows, weights = drawn(count)
        for first, second, said in (
            (weights, 7.0 * weights, "weights times seven"),
            (torch.ones_like(weights), torch.zeros_like(weights), "zeros in place of ones"),
        ):
            one, two = specimen.plugin(rows, first), specimen.plugin(rows, second)
            assert torch.allclose(one, two, rtol=1e-9, atol=1e-9), f"{said} give another centre of {count} rows"


def too_few_rows_are_refused(specimen: Combining) -> None:
    """By `check` before a run, by an InputError; and where more are taken, more still are.

    In a run some clients fail: of rows that `check` would not take there is a centre, or an InputError.
    """
    cohorts = specimen.cohorts
    assert cohorts, f"make it with options with which it can do with {LARGEST} rows"
    assert cohorts == list(range(cohorts[0], LARGEST + 1)), f"it can do with {cohorts} rows, and not with some more"
    for count in range(1, cohorts[0]):
        try:
            centre = specimen.plugin(*drawn(count))
        except InputError:
            continue
        assert torch.isfinite(centre).all(), f"{count} rows are too few, and it neither says so nor has a centre"


def large_numbers_have_a_centre(specimen: Combining) -> None:
    """Squares of what clients send, or sums, may be beyond single precision; the centre is not."""
    for count in specimen.cohorts:
        rows, weights = drawn(count, dtype=torch.float32)
        assert torch.isfinite(specimen.plugin(HUGE * rows, weights)).all(), f"rows times {HUGE:g} have no finite centre"


def threads_and_layout_change_no_bit(specimen: Combining) -> None:
    """On any number of threads, and however the rows lie in memory, the bytes are the same."""
    count = max(specimen.cohorts)
    rows, weights = drawn(count, LONG, torch.float32)
    expected, threads = specimen.plugin(rows, weights), torch.get_num_threads()
    try:
        for number in THREADS:
            torch.set_num_threads(number)
            found = specimen.plugin(rows, weights)
            assert torch.equal(found, expected), f"on {number} threads the centre has other bits; see halving_sum"
    finally:
        torch.set_num_threads(threads)
    found = specimen.plugin(rows.T.contiguous().T, weights)
    assert torch.equal(found, expected), "rows that lie otherwise in memory have a centre with other bits"


def it_combines_in_runs(specimen: Combining) -> None:
    """Who answers first does not matter; a cohort of which some updates fail has a centre, or an InputError."""
    cohort: dict[str, Any] = {"selection": {"kind": "uniform", "fraction": 1.0}, "aggregation": specimen.table}
    sizes = (7, 3, 12, 1, 5, 9, 4, 6, 8, 2, 10, 11)
    ends = []
    for direction in (1, -1):
        simulation = build_simulation(small_experiment(**cohort), small_problem(torch.float32, sizes=sizes))
        take(simulation, lambda clients: 50 + direction * clients)  # noqa: B023
        ends.append(go_round(simulation).state.params)
    assert torch.isfinite(ends[0]).all()
    assert not torch.equal(ends[0], simulation.state.params), "the model does not move"
    assert torch.equal(*ends), "the model depends on the order in which replies arrive"


CHECKS = (
    a_centre_is_one_row,
    inputs_stay_as_they_were,
    the_order_of_rows_does_not_matter,
    equal_rows_give_that_row,
    weights_are_shares,
    too_few_rows_are_refused,
    large_numbers_have_a_centre,
    threads_and_layout_change_no_bit,
    it_combines_in_runs,
)
