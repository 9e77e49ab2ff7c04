"""The contract that every strategy and every client keeps: a row in `contract.ROWS` brings all checks.

The problem is `small_problem`: six clients of 1 to 12 examples, so that cohorts are ragged, batches partial, and one
client takes a single step an epoch. Methods that ask for values only are also held to it on noisy functions.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from contract import (
    CROSSING,
    PARTS,
    PATHS,
    REFUSED,
    REPORTING,
    ROWS,
    SILENT,
    UNCOUNTED,
    grouped,
    held_to,
    subject,
)

from fedsim.cli.describe import GROUPS
from fedsim.core import plugins
from fedsim.testing import checks, option_checks
from fedsim.testing.on_ray import the_same_under_flowers_engine
from fedsim.testing.questions import questions

SUBJECTS = {row: subject(row) for row in ROWS}
VALUES_ONLY = {row: subject(row, values_only=True) for row, own in SUBJECTS.items() if own.fits_functions}
"""Rows that may be on functions."""
UNDER_RAY = (
    *("fedavgm", "scaffold", "feddyn", "fedrep", "fedzo_guard", "fzoos", "one_byte", "cbo", "fedcbo", "sfat"),
    "trades",
)
"""One of a kind: a server's memory, clients' states and parts of the model, several windows, logs, directions, values,
peers, defences.
"""
REPORTS = [
    (part, row, option)
    for part, rows in PARTS.items()
    for row in rows
    for option in REPORTING
    if hasattr(SUBJECTS[row].part(PATHS[part]), option) and part in ("strategy", "client", "attack")
]


@pytest.mark.parametrize(("row", "check"), held_to(list(ROWS), checks.CHECKS))
def test_the_contract(row: str, check: checks.Check) -> None:
    check(SUBJECTS[row])


@pytest.mark.parametrize(("row", "check"), held_to(list(VALUES_ONLY), checks.ON_FUNCTIONS))
def test_the_contract_on_functions(row: str, check: checks.Check) -> None:
    check(VALUES_ONLY[row])


@pytest.mark.ray
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("row", UNDER_RAY)
def test_flowers_engine_comes_to_the_same(row: str, pytestconfig: pytest.Config) -> None:
    the_same_under_flowers_engine(SUBJECTS[row], pytestconfig)


@pytest.mark.parametrize("part", PARTS)
def test_every_installed_plugin_has_a_row_and_each_of_its_options_another_value(part: str) -> None:
    installed = {entry.load() for entry in plugins.names(GROUPS[part]).values()}
    installed = {kind for kind in installed if not getattr(kind, "only_judges", False)}  # no client may train on it
    # Of a package that tests do without; see tests/strategies/test_ask_tell.py.
    installed = {kind for kind in installed if getattr(kind, "package", None) != "evosax"}
    assert installed == {type(own.part(PATHS[part])) for own in SUBJECTS.values()} - {type(None)}
    assert installed == {type(SUBJECTS[row].part(PATHS[part])) for row in PARTS[part]}


@pytest.mark.parametrize(("part", "row"), [(part, row) for part, rows in PARTS.items() for row in rows])
def test_every_option_is_in_the_tables(part: str, row: str) -> None:
    fields = {field.name for field in dataclasses.fields(SUBJECTS[row].part(PATHS[part]))}
    reporting = {option for other, reports, option in REPORTS if (other, reports) == (part, row)}
    others = {"strategy": set(CROSSING.get(row, ())), "client": set(REFUSED.get(row, ()))}.get(part, set())
    assert fields == set(PARTS[part][row]) | others | reporting


@pytest.mark.parametrize(
    ("part", "row", "option"),
    [
        pytest.param(part, row, option, marks=pytest.mark.xdist_group(row))
        for part, rows in PARTS.items()
        for row, options in rows.items()
        for option in options
    ],
)
def test_every_option_moves_something(part: str, row: str, option: str) -> None:
    option_checks.every_option_moves_something(SUBJECTS[row], PATHS[part], option, PARTS[part][row][option])


@pytest.mark.parametrize(("row", "option"), [(row, option) for row, options in REFUSED.items() for option in options])
def test_what_a_client_cannot_do_is_refused(row: str, option: str) -> None:
    option_checks.an_option_that_is_refused(SUBJECTS[row], PATHS["client"], option, REFUSED[row][option])


@pytest.mark.parametrize(("row", "option"), [(row, option) for row, options in CROSSING.items() for option in options])
def test_what_crosses_otherwise_changes_nothing_else(row: str, option: str) -> None:
    option_checks.what_crosses_otherwise_changes_nothing_else(
        SUBJECTS[row], PATHS["strategy"], option, CROSSING[row][option]
    )


@pytest.mark.parametrize(("part", "row", "option"), REPORTS)
def test_what_is_reported_changes_nothing_else(part: str, row: str, option: str) -> None:
    option_checks.what_is_reported_changes_nothing_else(SUBJECTS[row], PATHS[part], option, REPORTING[option])


@pytest.mark.parametrize("row", [row for part, row, option in REPORTS if option == "cosine"])
def test_the_cosine_is_reported_where_it_is_asked_for(row: str) -> None:
    """Of functions with gradients; each mean lies between -1 and 1."""
    base, other = (
        VALUES_ONLY[row].altered(PATHS["client"], {"cosine": cosine}).simulation() for cosine in (False, True)
    )
    for plain, told in zip(base, other, strict=True):
        assert "cosine" not in plain
        assert -1.0 <= told["cosine"] <= 1.0


@pytest.mark.parametrize("row", grouped(list(ROWS)))
def test_a_method_asks_for_what_its_paper_counts(row: str) -> None:
    """Evaluations to judge a step, and for control variates, are counted apart; who trains asks for none."""
    asked = questions(SUBJECTS[row])
    for window in asked:
        assert window.extra == (window.queries if window.action in UNCOUNTED else 0)
    assert any(window.queries for window in asked) == (SUBJECTS[row].table(("client",))["kind"] not in SILENT)


def test_the_bytes_of_each_method_are_the_published_ones() -> None:
    """d is 83 here (6 x 8 + 8 + 8 x 3 + 3): d floats each way, SCAFFOLD twice that, FedIvon d more up.

    FedNova, SFAT and those that weigh by losses have one number more up. FZooS sends M more each way,
    in two windows, from the second round on also down.
    """
    d, features = 6 * 8 + 8 + 8 * 3 + 3, 200
    for row, up, down in (
        ("fedavg", d, d),
        ("scaffold", 2 * d, 2 * d),
        ("fednova", d + 1, d),
        ("fedivon", 2 * d, d),
        ("feddyn", d, d),
        ("moon", d, d),
        ("local", 0, 0),
        ("ditto", d, d),
        ("pfedme", d, d),
        ("apfl", d, d),
        ("perfedavg", d, d),
        ("fal", d, d),
        ("sfat", d + 1, d),
        ("qfedavg", d + 1, d),
        ("term", d + 1, d),
        ("afl", d + 1, d),
        ("fedzo", d, d),
        ("fzoos", d + features, 2 * d),
    ):
        simulated = SUBJECTS[row].simulation(torch.float32, rounds=1)
        simulated.step()
        ledger = simulated.parts.engine.ledger
        assert (ledger.bytes_up, ledger.bytes_down) == (4 * 4 * up, 4 * 4 * down)


def test_a_client_state_survives_rounds_without_it() -> None:
    """SCAFFOLD's control variates of clients that did not take part stay; those of participants change."""
    simulated = SUBJECTS["scaffold"].simulation(rounds=4, selection={"kind": "uniform", "count": 2})
    seen: dict[int, torch.Tensor] = {}
    for _ in range(4):
        simulated.step()
        store = checks.engine_of(simulated).executor.store.snapshot()
        now = dict(zip(store["clients"].tolist(), store["control"], strict=True))
        changed = {client for client, row in now.items() if client not in seen or not torch.equal(row, seen[client])}
        assert len(changed) == 2
        seen = {client: row.clone() for client, row in now.items()}
    assert len(seen) > 2
