"""What is searched, as it is written."""

from __future__ import annotations

import pytest

from fedsim.core.errors import InputError
from fedsim.tuning.space import parse_space


@pytest.mark.parametrize(
    ("text", "low", "high", "whole", "log"),
    [
        ("0.5..0.9", 0.5, 0.9, False, False),
        ("-1..1", -1.0, 1.0, False, False),
        ("log:0.001..1", 0.001, 1.0, False, True),
        ("log:1e-5..1e-1", 1e-5, 0.1, False, True),
        ("int:1..10", 1, 10, True, False),
        ("int-log:1..64", 1, 64, True, True),
    ],
)
def test_a_range(text, low, high, whole, log):
    (found,) = parse_space([f"client.lr={text}"])
    assert (found.option, found.text) == ("client.lr", text)
    assert (found.low, found.high, found.whole, found.log) == (low, high, whole, log)
    assert found.ends == [low, high]
    assert (found.values == list(range(low, high + 1))) if whole else (found.values is None)


@pytest.mark.parametrize(
    ("text", "choices"),
    [("0,0.9", ("0", "0.9")), ("sgd, adam", ("sgd", "adam")), ("[8],[8, 8]", ("[8]", "[8, 8]")), ("0.5", ("0.5",))],
)
def test_choices(text, choices):
    (found,) = parse_space([f"client.optimizer.momentum={text}"])
    assert found.choices == choices
    assert found.values == found.ends == list(choices)
    assert found.assignment(choices[-1]) == f"client.optimizer.momentum={choices[-1]}"


def test_from_python_by_option_with_lists_of_choices():
    given = {
        "client.lr": "log:0.1..1",
        "client.optimizer.nesterov": [True, False],
        "problem.model.hidden": [[8], [8, 8]],
    }
    found = parse_space(given)
    assert [dimension.option for dimension in found] == list(given)
    assert [dimension.choices for dimension in found] == [(), ("true", "false"), ("[8]", "[8, 8]")]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ([], "name an option"),
        ({}, "name an option"),
        (["client.lr"], "write table.option=values"),
        (["client.lr="], "write table.option=values"),
        (["=1..2"], "write table.option=values"),
        (["client.lr=log:0..1"], "begins above 0"),
        (["client.lr=log:-1..1"], "begins above 0"),
        (["client.lr=1..1"], "must be above"),
        (["client.lr=2..1"], "must be above"),
        (["client.lr=0..inf"], "both finite"),
        (["client.lr=nan..1"], "must be above"),
        (["client.lr=log:a..b"], "write LOW..HIGH"),
        (["client.epochs=int:1..2.5"], "write LOW..HIGH"),
        (["client.epochs=int:3"], "write LOW..HIGH"),
        (["client.lr=0.1,0.1"], "named twice"),
        (["client.lr=0.1,"], "write table.option=value,value"),
        (["client.lr=1..2", "client.lr=3..4"], "has values already"),
        (["seed=0,1"], "would not be equal"),
        (["rounds=int:1..9"], "would not be equal"),
        (["evaluation.every=1,2"], "how trials are measured"),
        (["stopping.patience=1,2"], "how trials are measured"),
        (["partition.validation=0.1,0.2"], "how trials are measured"),
        ({"client.lr": 0.1}, "give a list of values"),
        ({"client.lr": []}, "give a list of values"),
    ],
)
def test_what_is_no_space_is_refused_in_a_line(space, words):
    with pytest.raises(InputError, match=words) as caught:
        parse_space(space)
    assert "\n" not in str(caught.value)
