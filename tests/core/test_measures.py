"""The name of a measure says which way is better."""

from __future__ import annotations

import pytest

from fedsim.core.measures import as_noted, attack_of, first, gains, is_measure, label_of, lower_is_better, noted


@pytest.mark.parametrize(
    "name",
    ["loss", "test_loss", "global_train_loss", "error", "value", "client_value_p90", "client_value_worst", "gap"],
)
def test_losses_and_values_improve_downwards(name):
    assert is_measure(name)
    assert lower_is_better(name)


@pytest.mark.parametrize(
    "name",
    [
        *("test_accuracy", "client_accuracy_p10", "attack_success", "success_share"),
        *("f1", "precision", "recall", "jaccard", "cosine", "personal_gain"),
    ],
)
def test_shares_and_cosines_improve_upwards(name):
    assert is_measure(name)
    assert not lower_is_better(name)


@pytest.mark.parametrize(
    "name", ["round", "queries", "extra_queries", "bytes_up", "accepted", "staleness", "evaluation"]
)
def test_what_costs_or_happens_is_no_measure(name):
    assert not is_measure(name)
    assert not lower_is_better(name)


ASKED = {"score": False, "ece": False, "f1_macro": True, "balanced_accuracy": True, "value_score": True}
"""Measures that were asked for, of which one is called as what is better below."""


@pytest.mark.parametrize(
    ("name", "label", "attack"),
    [
        ("test_ece", "ece", ""),
        ("global_train_f1_macro", "f1_macro", ""),
        ("client_f1_macro_p10", "f1_macro", ""),
        ("client_ece_p90", "ece", ""),
        ("test_balanced_accuracy", "balanced_accuracy", ""),
        ("test_pgd20_l2_balanced_accuracy", "balanced_accuracy", "pgd20_l2"),
        ("client_fgsm_ece_worst", "ece", "fgsm"),
        ("test_value_score", "value_score", ""),
        ("test_pgd20_accuracy", None, "pgd20"),
        ("test_accuracy", None, ""),
        ("client_ece_undefined", None, ""),
        ("validation_ece", "ece", ""),
        ("validation_client_f1_macro_p10", "f1_macro", ""),
        ("validation_client_fgsm_ece_worst", "ece", "fgsm"),
        ("validation_personal_ece", "ece", ""),
        ("newcomer_ece_p90", "ece", ""),
        ("validation_newcomer_f1_macro_p10", "f1_macro", ""),
        ("validation_client_accuracy_p10", None, ""),
        ("validation_pgd20_loss", None, "pgd20"),
        ("train_ece", None, ""),
        ("ece", None, ""),
    ],
)
def test_a_column_is_about_a_measure_that_was_asked_for(name, label, attack):
    assert label_of(name, ASKED) == label
    assert attack_of(name, ASKED) == attack
    if label is not None:
        assert is_measure(name, ASKED)
        assert lower_is_better(name, ASKED) is not ASKED[label]


def test_counts_of_clients_are_no_measures():
    assert not is_measure("client_f1_macro_undefined", ASKED)
    assert not is_measure("client_f1_macro_undefined")


def test_what_was_asked_for_is_said_after_the_accuracy():
    said = ("test_accuracy", "test_ece", "validation_ece", "personal_ece", "newcomer_ece", "validation_accuracy")
    assert first({"ece": False, "accuracy": True})[:6] == said


def test_which_way_is_better_is_read_as_it_was_noted():
    assert as_noted(noted(ASKED)) == ASKED
    for table in (None, 3, ["higher"], {"ece": True}, {"ece": "up"}):
        assert as_noted(table) is None


def test_a_gain_is_of_accuracies_or_else_of_losses():
    losses = {"personal_loss": 0.25, "client_loss": 0.75}
    assert gains(losses) == {"personal_gain": 0.5}
    accuracies = {"personal_accuracy": 0.5, "client_accuracy": 0.75}
    assert gains(losses | accuracies) == {"personal_gain": -0.25}
    aside = {f"validation_{name}": value for name, value in accuracies.items()}
    assert gains(losses | aside) == {"personal_gain": 0.5, "validation_personal_gain": -0.25}
    assert gains({"personal_accuracy": 0.5, "client_accuracy_p10": 0.75}) == {}
    assert gains(accuracies | {"client_accuracy": None}) == {}  # as a summary has what was not finite
