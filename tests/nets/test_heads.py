"""Heads: whatever a model returns, its outputs are found and lie as everybody expects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.core.errors import InputError
from fedsim.nets.heads import Head, Taken, fitted
from fedsim.problems.modules import load_start
from fedsim.running.build import build_simulation
from fedsim.testing.problems import DEVICE, blobs
from fedsim.testing.problems import small_experiment as small


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class Pair(NamedTuple):
    hidden: Tensor
    logits: Tensor


class Net(nn.Module):
    """A network whose forward pass returns anything that is made of its outputs."""

    def __init__(self, returning: Callable[[Tensor], Any] | None, outputs: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(6, 5), nn.Linear(5, outputs)
        self.returning = returning

    def forward(self, x: Tensor) -> Any:
        outputs = self.second(torch.tanh(self.first(x)))
        return outputs if self.returning is None else self.returning(outputs)


FORMS: dict[str, tuple[Callable[[Tensor], Any], Any]] = {
    "a dict": (lambda z: {"loss": None, "logits": z}, "logits"),
    "a dataclass": (lambda z: Output(None, z), "logits"),
    "a tuple": (lambda z: (z.sum(dim=1), z), 1),
    "a named tuple": (lambda z: Pair(z.exp(), z), "logits"),
    "one in the other": (lambda z: {"decoder": ([z.exp(), z],)}, "decoder.0.1"),
    "sides of one": (lambda z: z[:, :, None, None], None),
    "classes said": (lambda z: (z.unsqueeze(2),), {"at": 0, "classes": 1}),
}


def problem_of(model: nn.Module, head: Any = None, **changes: Any) -> Any:
    data = blobs() | changes
    return fedsim.supervised(**data, model=model, head=head, dtype=torch.float64, device=DEVICE)


def final(model: nn.Module, head: Any, executor: str, **changes: Any) -> Tensor:
    simulation = build_simulation(small(2, engine={"executor": executor}), problem_of(model, head, **changes))
    list(simulation)
    return simulation.state.params


@pytest.mark.parametrize("name", FORMS)
def test_outputs_in_any_form_train_as_outputs_alone(name):
    returning, head = FORMS[name]
    plain = final(Net(None), None, "loop")
    for executor in ("loop", "stacked"):
        assert torch.allclose(final(Net(returning), head, executor), plain, rtol=0, atol=1e-12)


def test_what_is_saved_has_the_names_of_the_model_and_the_model_that_was_handed_over_is_as_it_was(tmp_path):
    model = Net(FORMS["a dict"][0])
    result = fedsim.run(small(1), problem=problem_of(model, "logits"), out=tmp_path / "run")
    assert load_start(tmp_path / "run" / "model.safetensors").keys() == model.state_dict().keys()
    assert model(torch.ones(1, 6)).keys() == {"loss", "logits"}
    assert result.model()(torch.ones(2, 6, dtype=torch.float64, device=DEVICE)).shape == (2, 3)


def test_zeroth_order_and_attacks_see_the_outputs():
    tables = {"client": {"kind": "fedzo", "steps": 1, "batch_size": 4, "lr": 0.1}, "strategy": {"kind": "fedzo"}}
    tables |= {"evaluation": {"attacks": [{"kind": "fgsm", "epsilon": 0.1, "domain": "none"}]}}
    rows = [
        next(iter(build_simulation(small(1, **tables), problem_of(Net(returning), head)))) | {"wall": 0}
        for returning, head in [(None, None), FORMS["a dict"]]
    ]
    assert rows[0] == pytest.approx(rows[1], abs=1e-12)
    assert "test_fgsm_accuracy" in rows[0]


def test_a_single_log_odds_is_two_outputs_of_the_same_loss():
    """The loss is log(1 + e^-z) of class 1 and log(1 + e^z) of class 0, as of `binary_cross_entropy_with_logits`."""
    data = blobs()
    changes = {"y": data["y"] % 2, "test": (data["test"][0], data["test"][1] % 2)}
    found = []
    for returning in (None, lambda z: z.squeeze(1)):
        problem = problem_of(Net(returning, 1), {"binary": True}, **changes)
        with torch.no_grad():
            z = Net(None, 1).double()(problem.x_test.cpu()).squeeze(1)
        expected = nn.functional.binary_cross_entropy_with_logits(z, problem.y_test.cpu().double())
        assert problem.evaluate(problem.initial(), clients=False)["test_loss"] == pytest.approx(float(expected))
        found += [final(Net(returning, 1), {"binary": True}, executor, **changes) for executor in ("loop", "stacked")]
    assert all(torch.allclose(one, found[0], rtol=0, atol=1e-12) for one in found)


def test_layers_with_a_head_are_stacked_as_layers():
    """Without the head's own rule the whole sequence would go through `vmap`, which no dropout does."""
    made = []
    for last in (nn.Flatten(), nn.Identity()):  # whose outputs are [B, 3], and [B, 3, 1, 1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.4), nn.Conv2d(4, 3, 2), last
        made.append(final(nn.Sequential(*layers), None, "stacked", **blobs(shape=(1, 4, 4))))
    assert torch.allclose(*made, rtol=0, atol=1e-12)


def test_one_number_an_example_may_be_without_an_axis_of_outputs():
    data = blobs()
    changes = {"y": data["y"] + 0.5, "test": None}
    narrow, wide = (final(Net(form, 1), None, "stacked", **changes) for form in (lambda z: z[:, 0], None))
    assert torch.allclose(narrow, wide, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "places", "head", "expected"),
    [
        ((2, 3), (), Head(), None),
        ((2, 5, 3), (5,), Head(), None),
        ((2, 3, 5), (5,), Head(), Taken(axis=1)),
        ((2, 3, 4, 5), (4, 5), Head(), Taken(axis=1)),
        ((2, 4, 5, 3), (4, 5), Head(), None),
        ((2, 4, 4), (4,), Head(classes=2), None),
        ((2, 4, 4), (4,), Head(classes=1), Taken(axis=1)),
        ((2, 1, 4, 5), (4, 5), Head(binary=True), Taken(axis=1, binary=True)),
        ((2, 4, 5), (4, 5), Head(binary=True), Taken(places=(4, 5), binary=True)),
        ((2, 4, 5), (4, 5), Head(), None),  # classes without an axis of theirs: refused where outputs are looked at
    ],
)
def test_classes_are_put_last_where_the_shape_says_where_they_are(shape, places, head, expected):
    assert fitted(head, torch.zeros(shape), places, whole=False) == expected


def test_outputs_keep_their_places_when_classes_are_put_last():
    outputs = torch.arange(24.0).view(1, 2, 3, 4)  # [B, K, H, W]
    assert torch.equal(Taken(axis=1).shaped(outputs)[0, 1, 2], outputs[0, :, 1, 2])


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "a dict of one": (lambda z: {"loss": None, "logits": z}, None, r'model = Net: gives a dict; .* head = "logits"'),
    "several": (lambda z: {"a": z, "b": (z, 3)}, None, r'say as head which of: "a", "b\.0"'),
    "a dataclass": (lambda z: Output(None, z), None, r'gives a Output; .* head = "logits"'),
    "a place": (lambda z: (None, z), None, "head = 1"),
    "no tensor of floats": (lambda z: {"a": z.long()}, None, "is to return floats"),
    "an absent key": (lambda z: {"a": z}, "logits", r'problem\.head = logits: there is none in the dict .* "a"'),
    "a place beyond": (lambda z: (z,), 1, r"problem\.head = 1: there is none in the tuple .* head = 0"),
    "a key of a tensor": (None, "shape", r"problem\.head = shape: there is none in the Tensor"),
    "no tensor there": (lambda z: {"a": None, "b": z}, "a", r'problem\.head = a: is a NoneType.* head = "b"'),
    "no axis": (None, {"classes": 2}, r"problem\.head\.classes = 2: outputs have the shape \(2, 3\)"),
    "not two classes": (lambda z: z[:, :1], {"binary": True}, "head.binary = True: .* 3 classes"),
    "no head": (None, 0.5, "head = 0.5: give a key"),
    "nor this": (None, {"at": -1}, "at = -1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_outputs_there_is_refused_with_what_there_is(name):
    returning, head, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        problem_of(Net(returning), head)


def test_two_axes_that_fit_are_told_apart_by_who_knows():
    with pytest.raises(InputError, match=r"head\.classes = \(nothing\): classes may be along axis 1 or 2"):
        fitted(Head(), torch.zeros(2, 4, 4), (4,), whole=False)
