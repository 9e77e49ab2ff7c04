"""Each check of the kits, but for those of strategies and clients, objects to what is broken for it."""

from __future__ import annotations

from pathlib import Path

import broken_parts as broken
import numpy as np
import pytest
from broken_optimizers import (
    AsksTheFirst,
    DeclaresNothing,
    DividesByNothing,
    DrawsFromTheProcess,
    HasOneNormForAll,
    KeepsWhatItDoesNotName,
    Momentum,
    NeedsStateForNothing,
    PutsMemoryInItsPlace,
    RoundsItsRate,
)
from broken_trackers import SpoilsTheModel, TellsTwice, rows
from codes import EightBits, Largest, Sparse

from fedsim.core.errors import InputError
from fedsim.exchange.aggregation import Median
from fedsim.exchange.transforms import Clip
from fedsim.server.selection.uniform import Uniform
from fedsim.testing.checks import the_size_of_chunks_and_the_cores_change_no_bit
from fedsim.testing.optimizers import Stepping
from fedsim.testing.specimen import EVERY, Specimen, every_option_moves_something, options_survive_toml
from fedsim.testing.subject import group_of
from fedsim.testing.suite import KITS

pytestmark = pytest.mark.usefixtures("unpainted")

UNUSABLE = {check.__name__ for check in (*EVERY, *KITS["transforms"][1])} - {"options_survive_toml"}
"""What objects to a transform that a chain refuses."""
RESUMED = {"what_it_remembers_can_be_stored", "it_selects_in_runs"}
COMPARED = {"the_order_of_rows_does_not_matter", "weights_are_shares", "threads_and_layout_change_no_bit"}
"""Checks that compare two centres."""
SELECTORS = {
    broken.TakesTheBusy(count=4): {
        "who_is_chosen_is_free",
        "losses_are_asked_of_the_free_alone",
        "a_population_may_grow",
        "it_selects_in_runs",
    },
    broken.LastFirst(count=4): {"who_is_chosen_is_free", "it_selects_in_runs"},
    broken.TakesOneMore(count=4): {"as_many_as_are_wanted", "it_selects_in_runs"},
    broken.LeavesSomeOut(count=4): {"as_many_as_are_wanted"},
    broken.TakesAnyPopulation(count=4): {"a_population_that_is_too_small_is_refused"},
    broken.CountsInPlace(count=4): {"inputs_stay_as_they_were"},
    broken.EditsDurations(count=4): {"inputs_stay_as_they_were"},
    broken.DrawsFromPython(count=4): {"the_same_again", *RESUMED},
    broken.DrawsWithItsOwnSeed(count=4): {"another_seed_chooses_otherwise"},
    broken.DrawsByTheRound(count=4): {"a_second_selection_of_a_round_is_another_draw"},
    broken.RemembersNumbers(count=4): {
        "what_it_remembers_can_be_stored",
        "the_order_of_replies_does_not_matter",
        "a_population_may_grow",
        "it_selects_in_runs",
    },
    broken.RemembersLater(count=4): {
        "what_it_remembers_can_be_stored",
        "the_order_of_replies_does_not_matter",
        "a_population_may_grow",
        "it_selects_in_runs",
    },
    broken.LearnsFromTheLast(count=4): {"the_order_of_replies_does_not_matter"},
    broken.CountsWindows(count=4): {"nobodys_replies_teach_nothing"},
    broken.AsksTheBusy(count=2, pool=4): {"losses_are_asked_of_the_free_alone", "it_selects_in_runs"},
    broken.NeedsEveryLoss(count=2, pool=4): {"losses_are_asked_of_the_free_alone"},
    broken.WantsWhatNobodySends(count=4): {"it_selects_in_runs"},
    broken.HasMemoryOnItself(count=4): {"the_same_again", *RESUMED},
    broken.LosesAnOption(count=4, scale=None): {"options_survive_toml"},
    broken.KeepsItsPopulation(count=4): {"a_population_may_grow"},
    broken.ForgetsWhatItHasLearnt(count=4): {"a_population_may_grow"},
    broken.KnowsTheFirstSizes(count=4): {"a_population_may_grow"},
}
AGGREGATORS = {
    broken.HasTwoDimensions(): {"a_centre_is_one_row", "it_combines_in_runs"},
    broken.IsAlwaysDouble(): {"a_centre_is_one_row", "it_combines_in_runs"},
    broken.CentresInPlace(): {
        "inputs_stay_as_they_were",
        "equal_rows_give_that_row",
        "it_combines_in_runs",
        *COMPARED,
    },
    broken.FavoursTheFirstRow(): {"the_order_of_rows_does_not_matter", "weights_are_shares"},
    broken.Shrinks(): {"equal_rows_give_that_row"},
    broken.IsASum(): {"equal_rows_give_that_row", "weights_are_shares", "threads_and_layout_change_no_bit"},
    broken.SaysNothingOfTooFew(malicious=1): {"too_few_rows_are_refused"},
    broken.WantsAnEvenNumber(): {"too_few_rows_are_refused"},
    broken.SquaresInSingle(): {"large_numbers_have_a_centre"},
    broken.SumsInThreads(): {"threads_and_layout_change_no_bit"},
    broken.DrawsALength(): {"the_same_again", "equal_rows_give_that_row", "it_combines_in_runs", *COMPARED},
    broken.NeverMoves(): {"equal_rows_give_that_row", "it_combines_in_runs"},
}
TRANSFORMS = {
    broken.LosesNumbers(): UNUSABLE,
    broken.DividesByTheLargest(): {"what_arrives_has_the_form_of_what_was_sent"},
    broken.ScalesInPlace(): UNUSABLE,
    broken.CentresTheCohort(): {"a_client_is_transformed_alike_in_any_company", "it_transforms_in_runs"},
    broken.ForgetsWhatIsBeside(): {"bytes_are_counted_for_each_client"},
    broken.DeclaresLess(): UNUSABLE,
    broken.ClaimsHalf(): {"bytes_are_enough_for_what_arrives"},
    broken.CostsAByte(): {"bytes_are_enough_for_what_arrives"},
    broken.KeepsAnotherShape(): UNUSABLE,
    broken.KeepsWhatItDoesNotName(): UNUSABLE,
    broken.DrawsTheSameEachTurn(std=0.1): {"draws_are_named"},
    broken.DrawsTheSameForAll(std=0.1): {"draws_are_named"},
    broken.DrawsTheSameForEachVector(std=0.1): {"draws_are_named"},
    broken.SeedsItsOwnNoise(): {"draws_are_named"},
    broken.CountsOnItself(max_norm=0.1): {
        "the_same_again",
        "a_client_is_transformed_alike_in_any_company",
        "draws_are_named",
        "it_transforms_in_runs",
    },
}
DATASETS = {
    broken.IsInDouble(): {"its_arrays_fit_each_other"},
    broken.CountsFromOne(): {"owners_are_numbered_from_zero"},
    broken.TestsOnItsTraining(): {"what_is_tested_was_not_trained_on"},
    broken.LendsItsArrays(): {"what_is_done_to_the_arrays_does_not_come_back"},
    broken.ShufflesAtRandom(): {"the_same_again", "what_is_done_to_the_arrays_does_not_come_back"},
    broken.HasNoFeatures(): {"a_model_is_trained_on_it"},
    broken.SaysNothingOfDamage(): {"a_damaged_file_is_one_line"},
    broken.ReadsAnything(): {"a_damaged_file_is_one_line"},
    broken.LooksWhereItIs(): {"a_damaged_file_is_one_line", "an_absent_file_is_one_line"},
}
ALONE, MEAN = "an_example_is_alone", "an_example_is_the_mean_of_what_counts"
LOSSES = {
    broken.IsOneNumber(): {"losses_are_numbers_like_the_outputs", "gradients_are_those_of_autograd", MEAN},
    broken.ForgetsItsBound(): {"gradients_are_those_of_autograd"},
    broken.CentresTheBatch(): {"gradients_are_those_of_autograd", ALONE},
    broken.CountsPadding(): {"what_does_not_count_has_no_part", MEAN},
    broken.AddsUp(): {MEAN},
}
CLIENTS, RUNS = "each_client_is_measured_alone", "it_measures_in_runs"
MEASURES = {
    broken.Undecided(): {"it_says_what_it_is", "what_is_right_is_no_worse", RUNS},
    broken.NamedBadly(): {"it_says_what_it_is", RUNS},
    broken.DividesByNothing(): {"values_are_numbers", RUNS},
    broken.SortsInPlace(): {"inputs_stay_as_they_were"},
    broken.LooksAtTheFirst(): {"the_order_of_examples_does_not_matter"},
    broken.CountsThemTogether(): {CLIENTS},
    broken.HasAnEmptyClient(): {CLIENTS},
    broken.ImprovesTheOtherWay(): {"what_is_right_is_no_worse"},
    broken.GoesBeyondItsBest(): {"what_is_right_is_no_worse"},
    broken.DrawsASample(): {"the_same_again", CLIENTS, "the_order_of_examples_does_not_matter"},
    broken.HasAColumnOfItsOwn(): {RUNS},
}
MODELS = {
    broken.TakesNothing(): {"it_takes_some_inputs"},
    broken.StumblesOverTokens(): {
        *("the_same_again", "it_takes_some_inputs", "what_it_does_not_take_is_one_line"),
        *("outputs_are_as_many_as_asked", "it_trains_in_runs"),
    },
    broken.HasThreeOutputs(): {"outputs_are_as_many_as_asked"},
    broken.LearnsNothing(): {"it_trains_in_runs"},
    broken.DrawsItsFactor(): {"the_same_again"},
}
TRACKERS = {
    SpoilsTheModel(): {"a_run_with_it_is_the_run_without"},
    TellsTwice(): {"each_row_is_there_once", "runs_do_not_mix"},
}
ALIKE = "the_size_of_chunks_and_the_cores_change_no_bit"
"""Of the checks of clients, which all rules are held to as well, the one that finds what is not a client's own."""
OPTIMIZERS = {
    PutsMemoryInItsPlace(): {ALIKE},
    HasOneNormForAll(): {ALIKE},
    DividesByNothing(): {"where_there_is_nothing_to_learn_it_stays"},
    DeclaresNothing(): {"what_it_remembers_is_what_it_declares"},
    KeepsWhatItDoesNotName(): {
        *("what_it_keeps_is_what_it_declares", "where_there_is_nothing_to_learn_it_stays"),
        *("the_same_again", "a_rate_for_each_client_is_as_good_as_one_for_all", ALIKE),
    },
    NeedsStateForNothing(): {"what_it_keeps_is_what_it_declares"},
    DrawsFromTheProcess(): {"the_same_again", "a_rate_for_each_client_is_as_good_as_one_for_all", ALIKE},
    AsksTheFirst(): {"it_can_be_of_nobody"},
    RoundsItsRate(): {"a_rate_for_each_client_is_as_good_as_one_for_all"},
}
BROKEN = SELECTORS | AGGREGATORS | TRANSFORMS | DATASETS | LOSSES | MEASURES | MODELS | TRACKERS | OPTIMIZERS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data sets find their file."""
    place = tmp_path_factory.mktemp("data")
    np.savetxt(place / "numbers.txt", np.random.default_rng(0).normal(size=60))
    return place


def objecting(plugin: object, folder: Path) -> set[str]:
    """The checks that object."""
    made, own = KITS[group_of(plugin)]
    given = {"datasets": (folder,), "trackers": (rows,)}.get(group_of(plugin), ())
    specimen = made(plugin, *given)
    found = set()
    for check in (*EVERY, *own):
        try:
            check(specimen)
        except pytest.skip.Exception:
            continue
        except Exception:
            found.add(check.__name__)
    if isinstance(specimen, Stepping):
        try:
            the_size_of_chunks_and_the_cores_change_no_bit(specimen.subject)
        except Exception:
            found.add(ALIKE)
    return found


@pytest.mark.parametrize("plugin", BROKEN, ids=lambda plugin: type(plugin).__name__)
def test_what_is_broken_is_found(plugin, folder):
    assert objecting(plugin, folder) == BROKEN[plugin]


def test_a_data_set_with_holes_is_refused_as_it_is_made(folder):
    with pytest.raises(InputError, match=r"its training inputs are not finite at \[3, 1\]"):
        KITS["datasets"][0](broken.HasHoles(), folder).load()


@pytest.mark.parametrize("group", KITS)
def test_each_check_has_something_broken_for_it(group):
    every = {check.__name__ for check in KITS[group][1]}
    broken_for = set().union(*(found for plugin, found in BROKEN.items() if group_of(plugin) == group))
    assert every - broken_for == set()
    assert {check.__name__ for check in EVERY} <= set().union(*BROKEN.values())


@pytest.mark.parametrize(
    "plugin",
    [
        *(Uniform(count=4), Median(), Clip(max_norm=1.0), broken.Blocks(), broken.FromAFile(), Momentum()),
        *(Largest(share=0.5), EightBits(), Sparse()),  # which remember, draw, and take what depends on the numbers
    ],
    ids=lambda plugin: type(plugin).__name__,
)
def test_what_is_whole_passes(plugin, folder):
    assert objecting(plugin, folder) == set()


def specimen_of(plugin: object) -> Specimen:
    return KITS[group_of(plugin)][0](plugin)


def test_an_option_that_does_nothing_is_named():
    specimen = specimen_of(broken.IgnoresAnOption(count=4))
    every_option_moves_something(specimen, "count")
    with pytest.raises(AssertionError, match=r"temperature = 1\.0: no other value .* \(tried 0\.5, 2\.0\)"):
        every_option_moves_something(specimen, "temperature")
    with pytest.raises(AssertionError, match=r"temperature = 1\.0: with 9\.0 in its place it comes to the same"):
        every_option_moves_something(specimen, "temperature", (9.0, {}))


def test_an_option_that_is_lost_is_named():
    with pytest.raises(AssertionError, match=r"scale = None is 1\.0 when it is read again"):
        options_survive_toml(specimen_of(broken.LosesAnOption(count=4, scale=None)))
