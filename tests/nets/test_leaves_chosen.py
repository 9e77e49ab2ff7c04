"""Words and names of parameters, and what they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedsim.core.errors import InputError
from fedsim.nets.normalisation import statistics_of
from fedsim.nets.prepared import prepare
from fedsim.nets.selection import Selection, leaves_of, selected
from fedsim.nets.stack import Layout


class Blocks(nn.Module):
    """Layers whose names begin alike: 1, 10 and 1.0, and what normalises by two types."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("1", nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))
        self.add_module("10", nn.Linear(4, 4, bias=False))
        self.downsample = nn.LayerNorm(4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.downsample(self.get_submodule("10")(self.get_submodule("1")(x))))


def given() -> dict[str, Any]:
    module = prepare(Blocks())
    trained = dict(module.named_parameters())
    return {"module": module, "layout": Layout.of(trained, statistics_of(module)), "option": "shared"}


FIRST, NORM = {"1.0.weight", "1.0.bias"}, {"1.1.weight", "1.1.bias", "downsample.weight", "downsample.bias"}
RUNNING, HEAD = {"1.1.running_mean", "1.1.running_var"}, {"out.weight", "out.bias"}
BODY = FIRST | NORM | {"10.weight"}


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        ("all", BODY | HEAD),
        ("body", BODY),
        ("head", HEAD),
        ("norm", NORM),
        ("1", FIRST | {"1.1.weight", "1.1.bias"}),
        ("1.0", FIRST),
        ("1*", FIRST | {"1.1.weight", "1.1.bias", "10.weight"}),
        ("*.bias", {"1.0.bias", "1.1.bias", "downsample.bias", "out.bias"}),
        ("10.weight", {"10.weight"}),
        (["head", "10"], HEAD | {"10.weight"}),
        (("head", "head"), HEAD),
        ({"not": "body"}, HEAD),
        ({"not": ["norm", "head"]}, FIRST | {"10.weight"}),
        ({"not": []}, BODY | HEAD),
        ([], set()),
        ({"not": "all"}, set()),
    ],
)
def test_what_a_selection_stands_for_is_trained(selection: Selection, wanted: set[str]) -> None:
    assert selected(selection, **given()) == wanted


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        (["statistics"], RUNNING),
        (["norm"], NORM | RUNNING),
        (["1.1", "head"], {"1.1.weight", "1.1.bias"} | RUNNING | HEAD),
        (["body"], BODY | RUNNING),
        (["all"], BODY | HEAD | RUNNING),
    ],
)
def test_leaves_may_be_running_statistics_too(named: list[str], wanted: set[str]) -> None:
    assert leaves_of(named, **given()) == wanted


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (
            "0",
            r"shared = 0: is no parameter of this model, which has 1\.0\.weight, .*, \.\.\., and none of",
        ),
        (["head", "bodies"], r"shared = bodies: is no parameter.* did you mean body\?$"),
        ("HEAD", r"shared = HEAD: is no parameter.* did you mean head\?$"),
        ("1.0.weigth", r"shared = 1\.0\.weigth: .* did you mean 1\.0\.weight\?$"),
        ({"not": "1.2"}, r"shared = 1\.2: is no parameter"),
        ("statistics", "shared = statistics: is of running statistics"),
        ("*.running_var", r"shared = \*\.running_var: is of running statistics"),
        (3, "shared = 3: give a word or a name"),
        (["head", 3], r"shared = \['head', 3\]: give"),
        ({"of": "head"}, r"shared = {'of': 'head'}: give"),
        ({"not": {"not": "head"}}, r"shared = {'not': {'not': 'head'}}: give"),
        (None, "shared = None: give"),
    ],
)
def test_what_stands_for_nothing_that_is_trained_is_refused(selection: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"^{words}"):
        selected(selection, **given())


def test_of_a_single_layer_there_is_a_head_and_no_body() -> None:
    module = nn.Linear(2, 2)
    layout = Layout.of(dict(module.named_parameters()))
    assert selected("head", module, layout, "shared") == {"weight", "bias"}
    with pytest.raises(InputError, match=r"^shared = body: the model has one layer with parameters"):
        selected("body", module, layout, "shared")
    with pytest.raises(InputError, match=r"^shared = norm: the model has no layer that normalises"):
        selected("norm", module, layout, "shared")


def test_frozen_parameters_are_of_no_layer() -> None:
    """The head is the last layer of which something is trained."""
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].requires_grad_(False)
    layout = Layout.of({name: own for name, own in module.named_parameters() if own.requires_grad})
    assert selected("head", module, layout, "shared") == {"0.weight", "0.bias"}
