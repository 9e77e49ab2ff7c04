"""Variables by name: where values lie in [0, 1]^d, what functions are asked, and who may search among them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.problems.black_box import BlackBox
from fedsim.problems.spaces import space_of

MIXED = {"x": (0, 5), "lr": ("log", 1e-4, 1.0), "layers": ("int", 1, 8), "act": ("cat", ["relu", "tanh", "elu"])}


def made(function: Any = lambda values: values["x"], space: Any = None, **options: Any) -> BlackBox:
    return fedsim.black_box([function], space=MIXED if space is None else space, device="cpu", **options)


def test_values_lie_where_the_rules_say() -> None:
    """Whole numbers have cells of one width, of categories the first of the largest counts."""
    space = space_of(MIXED)
    assert space.dimension == 6
    assert space.cells.tolist() == [0, 0, 8, 0, 0, 0]
    assert space.discrete == ["layers", "act"]
    found = space.typed([0.5, 0.25, 0.5, 0.2, 0.7, 0.7])
    assert found == {"x": 2.5, "lr": pytest.approx(1e-3), "layers": 5, "act": "tanh"}
    assert isinstance(found["layers"], int)
    assert space.numbers(np.array([0.5, 0.25, 0.5, 0.2, 0.7, 0.7]))["act"] == 1.0
    counts = np.bincount([space.typed([0, 0, v, 0, 0, 0])["layers"] for v in np.linspace(0, 1, 8001)[:-1]])
    assert counts[1:].tolist() == [1000] * 8
    assert space_of({"act": ("cat", [1, 2]), "x": (0, 4)}).typed([0.1, 0.2, 0.75]) == {"act": 2, "x": 3.0}
    # A point outside is the nearest inside.
    assert space.typed([-1, 2, 1.5, 0, 0, 0]) == {"x": 0.0, "lr": pytest.approx(1.0), "layers": 8, "act": "relu"}
    assert space.typed([0, 0, -0.2, 0, 0, 0])["layers"] == 1


def test_a_start_is_at_its_values() -> None:
    space = space_of(MIXED)
    values = {"x": 1.25, "lr": 0.01, "layers": 8, "act": "elu"}
    found = space.typed(space.point(values))
    assert found == {**values, "lr": pytest.approx(0.01)}
    assert made(start=values).initial().tolist() == space.point(values).tolist()
    middle = made(start={"layers": 3}).initial().tolist()
    assert middle == [0.5, 0.5, 2.5 / 8, 0.5, 0.5, 0.5]


def test_functions_are_asked_typed_values_within_bounds() -> None:
    asked: list[dict[str, Any]] = []

    def function(values: dict[str, Any]) -> float:
        asked.append(values)
        return values["x"] + math.log(values["lr"]) ** 2 + values["layers"] + (values["act"] != "tanh")

    problem = made(function)
    strategy = {"kind": "fedes", "sigma": 0.5, "lr": 0.5}  # which keeps to no box
    result = fedsim.run(rounds=3, strategy=strategy, client="fedes", problem=problem, save=False)
    assert all(0 <= one["x"] <= 5 and 1e-4 <= one["lr"] <= 1.0 + 1e-12 and 1 <= one["layers"] <= 8 for one in asked)
    assert {type(one["layers"]) for one in asked} == {int}
    assert {one["act"] for one in asked} == {"relu", "tanh", "elu"}
    found, row = problem.space.typed(result.params), result.history.rows[-1]
    assert row["at_layers"] == found["layers"]
    assert row["at_x"] == pytest.approx(found["x"])
    assert row["at_act"] == ["relu", "tanh", "elu"].index(found["act"])


@pytest.mark.parametrize(
    ("strategy", "client"),
    [
        ({"kind": "genetic", "spread": 0.3, "power": 0.2}, "genetic"),
        ({"kind": "cbo", "particles": 40, "share": 0.3}, "values"),
        ({"kind": "fedes", "sigma": 0.3, "lr": 0.1, "population": 40}, "fedes"),
    ],
    ids=["genetic", "cbo", "fedes"],
)
def test_those_that_rank_find_it(strategy: dict[str, Any], client: str) -> None:
    def function(values: dict[str, Any]) -> float:
        number = (values["x"] - 2.0) ** 2 + (math.log10(values["lr"]) + 2.0) ** 2
        return number + (values["layers"] - 6) ** 2 + (0.0 if values["act"] == "tanh" else 3.0)

    problem = made(function)
    result = fedsim.run(rounds=40, strategy=strategy, client=client, problem=problem, save=False)
    assert problem.space.typed(result.params)["act"] == "tanh"
    assert result.summary["value"] < 0.4 * problem.evaluate(problem.initial(), clients=False)["value"]


@pytest.mark.parametrize("kind", ["fedzo", "scaffold_zo", "fzoos", "decomfl", "fedkseed", "one_byte"])
def test_those_that_search_along_slopes_are_refused_unless_that_is_asked_for(kind: str) -> None:
    with pytest.raises(
        InputError, match=r"client\.kind = .*: layers, act: whole numbers and categories have no slopes"
    ):
        fedsim.run(rounds=1, strategy=kind, client=kind, problem=made(), save=False)
    if kind == "fedzo":
        numbers = {"x": (0, 5), "lr": ("log", 1e-4, 1.0)}
        for problem in (made(relax=True), made(space=numbers)):
            assert fedsim.run(rounds=1, strategy=kind, client=kind, problem=problem, save=False).status == "finished"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"space": {}}, "space = {}: name a variable"),
        ({"space": {"two words": (0, 1)}}, "space = two words: a variable's name"),
        ({"space": {"x": (5, 0)}}, r"space.x = .*the lower one first"),
        ({"space": {"x": (0, math.inf)}}, r"space.x = .*two finite numbers"),
        ({"space": {"n": ("int", 8, 1)}}, r"space.n = .*the lower one first"),
        ({"space": {"n": ("int", 1, 2.5)}}, r"space.n = .*whole numbers"),
        ({"space": {"lr": ("log", 0, 1)}}, r"space.lr = .*above 0"),
        ({"space": {"act": ("cat", ["relu"])}}, r"space.act = .*two choices or more"),
        ({"space": {"act": ("cat", ["relu", "relu"])}}, r"space.act = .*two choices or more"),
        ({"space": {"act": ("cat", "relu")}}, r"space.act = .*two choices or more"),
        ({"space": {"act": ("one of", [1, 2])}}, r"space.act = .*write \(low, high\)"),
        ({"space": {"act": 3}}, r"space.act = 3: write"),
        ({"start": {"act": "selu"}}, r"start.act = selu: .*elu"),
        ({"start": {"layers": 9}}, "start.layers = 9: give a whole number within 1 .. 8"),
        ({"start": {"layers": 2.5}}, "start.layers = 2.5: give a whole number"),
        ({"start": {"depth": 2}}, "start.depth = 2: "),
        ({"start": 0.5}, "start = float: of a space is a dict"),
        ({"dimension": 6}, "dimension = 6: the space says it"),
        ({"bounds": (0.0, 2.0)}, "bounds = .*: the space says it"),
        ({"kind": "numpy"}, "kind = numpy: functions of a space"),
    ],
)
def test_what_cannot_be_is_one_line(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        made(**options)
    assert "\n" not in str(caught.value)


def test_without_a_space_dimensions_are_said_and_names_are_none() -> None:
    for options, named in (
        ({}, "dimension = None: say how many"),
        ({"dimension": 2, "relax": True}, "relax = True: is of whole numbers"),
        ({"dimension": 2, "start": {"x": 1}}, "start = a dict: is of variables"),
    ):
        with pytest.raises(InputError, match=named):
            fedsim.black_box([abs], kind="scalar", **options)  # type: ignore[arg-type]
    assert fedsim.black_box([abs], kind="scalar", dimension=1).cells is None


@pytest.mark.slow
def test_processes_are_asked_typed_values_too() -> None:
    problem = fedsim.black_box([whole], space=MIXED, workers=1, device="cpu")
    x = torch.tensor([[[0.5, 0.25, 0.5, 0.2, 0.7, 0.7]]], dtype=torch.float64)
    from fedsim.core.streams import Streams

    assert problem.query(torch.tensor([0]), x, Streams(0), 0, 0).tolist() == [[5.0]]
    problem.close()


def whole(values: dict[str, Any]) -> float:
    return float(values["layers"])
