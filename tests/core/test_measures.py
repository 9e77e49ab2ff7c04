"""The name of a measure says which way is better."""

from __future__ import annotations

import pytest

from fedsim.core.measures import is_measure, lower_is_better


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
        *("f1", "precision", "recall", "jaccard", "cosine"),
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
