"""Each check objects to what is broken for it, and to nothing that is not."""

from __future__ import annotations

import broken
import pytest

from fedsim.core.errors import BrokenPromiseError
from fedsim.testing import Subject, checks, option_checks
from fedsim.testing.subject import PARTS, group_of, table_of
from strategies.fedavg import FedAvg

EVERY = {check.__name__: check for check in checks.CHECKS}
UNANSWERED = {
    "a_client_that_fails_is_as_if_it_had_not_answered",
    "a_late_reply_is_taken_later_or_left",
}
SPOILED = {"an_update_that_is_not_finite_is_left_out_and_counted"}
TOGETHER = {
    "loop_equals_stacked",
    "compiled_equals_stacked",
    "the_size_of_chunks_and_the_cores_change_no_bit",
}
SHUFFLED = {"the_order_of_clients_in_an_order_does_not_matter"}
RESUMED = {"an_interrupted_run_ends_like_an_uninterrupted_one"}
TWINS = {
    *TOGETHER,
    *RESUMED,
    *UNANSWERED,
    *SPOILED,
    "replies_in_any_order_give_the_same_bytes",
    "the_same_seed_gives_the_same_bytes",
}
"""Checks that compare two runs."""
# Of each the checks that must object. Who trains in a cohort of other clients is another one where a client fails or is
# late, for its work is not done at all; where it is spoiled the cohort is the same.
BROKEN = {
    broken.EditsReplies(): {"inputs_stay_as_they_were"},
    broken.FavoursTheFirst(): {"replies_in_any_order_give_the_same_bytes"},
    broken.DrawsFromPython(): TWINS,
    broken.DrawsTheSame(): {"another_seed_gives_other_bytes"},
    broken.SeedsPyTorch(): {"the_same_seed_gives_the_same_bytes"},
    broken.CountsBytesOnce(): {"bytes_are_those_of_the_payloads"},
    broken.HasMomentumOnItself(): RESUMED,
    broken.DividesByReplies(): {"windows_of_nobody_complete_the_round"},
    broken.DividesByAsked(): SPOILED,
    broken.TrustsLosses(): {"a_metric_that_is_nan_leaves_the_model_finite"},
    broken.WaitsForEverybody(): {"windows_of_nobody_complete_the_round"},
    broken.NeedsTwo(): {"a_cohort_of_one"},
    broken.FearsTheLate(window=1.0, frequency="observed"): {"a_late_reply_is_taken_later_or_left"},
    broken.LosesAnOption(scale=None): {"options_survive_toml"},
    broken.CentresTheCohort(epochs=1, batch_size=4): {*TOGETHER, *UNANSWERED, *SHUFFLED},
    broken.CountsRows(epochs=1, batch_size=4): {*TOGETHER, *UNANSWERED, *SHUFFLED},
    broken.DrawsInCohorts(epochs=1, batch_size=4): {*TOGETHER, *UNANSWERED, *SHUFFLED},
    broken.RemembersOnItself(epochs=1, batch_size=4): RESUMED,
    broken.DrawsByClient(epochs=1, batch_size=4): {"another_seed_gives_other_bytes"},
    broken.KeepsItsPopulation(): {"a_population_may_grow"},
    broken.ForgetsItsPopulation(): {"a_population_may_grow"},
    broken.GrowsInPlace(): {"a_population_may_grow"},
    broken.CreditsNewClients(): {"a_population_may_grow"},
    broken.CountsFewerThanItAsks(steps=2, optimizer="sgd"): {"queries_are_what_was_asked"},
}


def subject_of(plugin: object) -> Subject:
    group = group_of(plugin)
    part = PARTS[group]
    partner = {"strategy": "fedzo"} if isinstance(plugin, broken.AsksMoreThanItSays) else {}
    return Subject({part: table_of(group, plugin), **partner}, given={part: plugin})


def objecting(subject: Subject) -> set[str]:
    found = set()
    for name, check in EVERY.items():
        try:
            check(subject)
        except Exception:
            found.add(name)
    return found


@pytest.mark.parametrize("plugin", BROKEN, ids=lambda plugin: type(plugin).__name__)
def test_what_is_broken_is_found_and_nothing_else(plugin):
    assert objecting(subject_of(plugin)) == BROKEN[plugin]


def test_each_check_has_something_broken_for_it():
    assert set().union(*BROKEN.values()) == set(EVERY)


@pytest.mark.parametrize("plugin", BROKEN, ids=lambda plugin: type(plugin).__name__)
def test_what_is_broken_is_found_by_checks_that_are_about_it(plugin):
    """Of rows that share a server, one is held to what is about servers; of those that share clients likewise."""
    others = {"strategy": checks.OF_CLIENTS, "client": checks.OF_SERVERS}[PARTS[group_of(plugin)]]
    assert BROKEN[plugin] - {check.__name__ for check in others}


def test_what_is_whole_passes():
    assert objecting(subject_of(FedAvg())) == set()


def test_evaluations_that_are_not_declared_end_every_run():
    with pytest.raises(BrokenPromiseError, match=r"it asked for \[42, 42.*\] values where its cost declares 41"):
        checks.bytes_are_those_of_the_payloads(subject_of(broken.AsksMoreThanItSays(steps=2)))


def test_a_model_that_is_written_to_ends_every_run():
    with pytest.raises(BrokenPromiseError, match="tell changes the params of the state that it is handed"):
        checks.a_cohort_of_one(subject_of(broken.EditsItsState()))


def test_bytes_that_are_not_declared_end_every_run():
    said = r"sends delta of 83 x 32 bits, more of 1 x 32 bits where its cost declares delta of 83 x 32 bits"
    with pytest.raises(BrokenPromiseError, match=said):
        checks.bytes_are_those_of_the_payloads(subject_of(broken.SendsMoreThanItSays(epochs=1, batch_size=4)))


def test_an_option_that_does_nothing_is_named():
    subject = subject_of(broken.IgnoresAnOption())
    option_checks.every_option_moves_something(subject, ("strategy",), "server_lr")
    with pytest.raises(AssertionError, match=r"strategy\.temperature = 1\.0: no other value .* \(tried 0\.5, 2\.0\)"):
        option_checks.every_option_moves_something(subject, ("strategy",), "temperature")
    with pytest.raises(
        AssertionError, match=r"strategy\.temperature = 1\.0: with 7\.0 in its place the run is the same"
    ):
        option_checks.every_option_moves_something(subject, ("strategy",), "temperature", (7.0, {}))


def test_an_option_that_moves_only_with_another_is_found_with_it():
    subject = subject_of(FedAvg())
    with pytest.raises(AssertionError, match=r"strategy\.deadline = None: no other value"):
        option_checks.every_option_moves_something(subject, ("strategy",), "deadline")
    # Of six clients that take 1 down to 0.2 s, half a second is too short for the first.
    spread = {"devices": {"compute": {"kind": "fixed", "spread": 80.0}}}
    option_checks.every_option_moves_something(subject, ("strategy",), "deadline", (0.5, spread))


def test_what_is_said_to_change_nothing_must_not():
    subject = subject_of(FedAvg())
    for check, words in (
        (option_checks.what_crosses_otherwise_changes_nothing_else, r"assert .* <= "),
        (option_checks.what_is_reported_changes_nothing_else, "server_lr = 0.5 changes"),
        (option_checks.an_option_that_is_refused, r"strategy\.server_lr = 0\.5 is not refused"),
    ):
        with pytest.raises(AssertionError, match=words):
            check(subject, ("strategy",), "server_lr", (0.5, {}))
