"""Supervised problems of a user's own: what cannot be used is refused in a line that names the cause."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim.core import memory
from fedsim.core.errors import InputError
from fedsim.problems.models import layers
from fedsim.testing.problems import DEVICE

ROWS = 12
X = np.random.Generator(np.random.PCG64(0)).normal(size=(ROWS, 4))
Y = np.arange(ROWS) % 3
CLIENTS = [range(5), range(5, ROWS)]
TRAINING = {"kind": "sgd", "epochs": 1, "batch_size": 4, "lr": 0.1}


def own(**changes: Any) -> fedsim.Result:
    """One round on a problem of three classes, with changes to its arguments."""
    given: dict[str, Any] = {"x": X, "y": Y, "clients": CLIENTS, "model": nn.Linear(4, 3), "device": DEVICE}
    return fedsim.run(rounds=1, client=TRAINING, problem=fedsim.supervised(**given | changes), save=False)


class Forward(nn.Module):
    """A module whose forward pass is any function of its layer and the inputs."""

    def __init__(self, forward: Callable[[nn.Module, torch.Tensor], Any], **others: Any) -> None:
        super().__init__()
        self.layer, self.made = nn.Linear(4, 3), forward
        for name, value in others.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> Any:
        return self.made(self.layer, x)


class Sklearn:
    """What has `fit` and `predict`, and no parameters."""

    def fit(self, x: Any, y: Any) -> None: ...


def hooked() -> nn.Module:
    model = nn.Linear(4, 3)
    model.weight.register_hook(lambda gradient: gradient * 0)
    return model


def scripted() -> nn.Module:
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        return torch.jit.trace(nn.Linear(4, 3), torch.ones(2, 4))


def raising(_: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return {}["weight"] + x


MODELS = {
    "a class": (lambda: nn.Linear, "Linear: is a class"),
    "a class of another kind": (lambda: Sklearn, "Sklearn: is a class"),
    "an estimator": (Sklearn, "Sklearn: is no module"),
    "a function": (lambda: torch.relu, "relu: is no module"),
    "nothing": (lambda: None, "NoneType: is no module"),
    "a state dict": (lambda: nn.Linear(4, 3).state_dict(), "OrderedDict: is no module"),
    "a name": (lambda: "mlp", "'mlp': is one for experiment files"),
    "a table": (lambda: {"kind": "gpt"}, r"{'kind': 'gpt'}: is one for experiment files"),
    "lazy": (lambda: nn.LazyLinear(3), "lazy layer"),
    "meta": (lambda: nn.Linear(4, 3, device="meta"), "meta device"),
    "complex": (lambda: nn.Linear(4, 3, dtype=torch.complex64), "complex"),
    "scripted": (scripted, "TorchScript"),
    "a hook on a gradient": (hooked, "hook"),
    "one a client": (
        lambda: [nn.Linear(4, 3), nn.Linear(4, 3, bias=False)],
        "2 models: clients train one architecture",
    ),
    "modules": (lambda: nn.ModuleList([nn.Linear(4, 3)]), "1 models: clients train one architecture"),
    "by name": (lambda: {"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}, "2 models: clients train one architecture"),
    "not to be copied": (lambda: Forward(lambda m, x: m(x), held=(n for n in range(3))), "cannot be copied"),
    "a dict": (lambda: Forward(lambda m, x: {"logits": m(x)}), "gives a dict"),
    "a tuple": (lambda: Forward(lambda m, x: (m(x), None)), "gives a tuple"),
    "whole numbers": (lambda: Forward(lambda m, x: m(x).long()), r"gives a tensor of torch\.int64"),
    "no axis of outputs": (lambda: Forward(lambda m, x: m(x)[:, 0]), r"shape \(2,\)"),
    "squeezed": (lambda: Forward(lambda m, x: m(x).squeeze()), r"shape \(3,\) for inputs of shape \(1, 4\)"),
    "no gradient": (lambda: Forward(lambda m, x: m(x).detach()), "no gradient"),
    "another layer's": (lambda: Forward(lambda m, x: x[:, :3] * torch.ones(3, requires_grad=True)), "depend on none"),
    "in double": (lambda: Forward(lambda m, x: m(x).double()), "gives float64, and its parameters are float32"),
    "in half": (lambda: Forward(lambda m, x: m(x).bfloat16()), "gives bfloat16, and its parameters are float32"),
    "exiting": (lambda: Forward(lambda m, x: sys.exit(3)), "SystemExit: 3"),
    "raising": (lambda: Forward(raising), "KeyError: 'weight'"),
    "writing its inputs": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)), "changes its inputs"),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_no_model_is_refused_with_the_reason(name):
    make, words = MODELS[name]
    with pytest.raises(InputError, match=rf"^problem\.model = .*{words}"):
        own(model=make())


def tokens(**settings: Any) -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 2, **settings), nn.Flatten(), nn.Linear(8, 3))


def tokens_with(row: int, value: int) -> np.ndarray:
    found = np.ones((ROWS, 4), dtype=np.int64)
    found[row, 2] = value
    return found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": tokens_with(7, 9)}, "example 7 of the training inputs, with tokens 1 .. 9"),
        ({"x": tokens_with(7, -1)}, "example 7 of the training inputs, with tokens -1 .. 1"),
        ({"x": tokens_with(0, 1), "test": (tokens_with(3, 2**40), Y)}, "example 3 of the test inputs"),
        ({"x": X}, "does not fit float32 inputs"),
        ({"x": tokens_with(0, 1), "model": nn.Linear(4, 3)}, "whole numbers are tokens; give floats"),
        ({"x": tokens_with(0, 1), "model": tokens(max_norm=0.5)}, "changes its parameters, as max_norm"),
        ({"x": tokens_with(0, 1), "model": tokens(max_norm=1e6)}, "changes its parameters, as max_norm"),
        ({"x": tokens_with(0, 1), "model": tokens(sparse=True)}, "sparse"),
    ],
)
def test_tokens_that_a_model_has_no_row_for_are_found_before_the_run(changes, words):
    with pytest.raises(InputError, match=rf"^problem\.model = .*{words}"):
        own(**{"model": tokens()} | changes)


def test_a_place_of_its_own_for_each_token_is_tried_with_its_own_extremes():
    class Two(nn.Module):
        """The first number is one of 2 kinds, the second one of 100."""

        def __init__(self) -> None:
            super().__init__()
            self.kind, self.code = nn.Embedding(2, 3), nn.Embedding(100, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.kind(x[:, 0]) + self.code(x[:, 1])

    codes = np.stack((Y % 2, Y + 97), axis=1)
    assert own(x=codes, model=Two()).status == "finished"
    with pytest.raises(InputError, match="example 2 of the training inputs"):
        own(x=codes + np.array([0, 1]), model=Two())


def nan_at(row: int, value: float = np.nan) -> np.ndarray:
    found = X.copy()
    found[row, 1] = value
    return found


ONES = np.ones(ROWS)
ARGUMENTS = {
    "ragged": ({"x": [[1.0, 2.0], [3.0]], "y": [0, 1]}, "x = list: is no array of numbers"),
    "words": ({"x": [["a"] * 4] * ROWS}, "x = <U1: give an array of numbers"),
    "an object": ({"x": {"a": X}}, "x = dict: give an array of numbers"),
    "dates": ({"x": np.full((ROWS, 4), np.datetime64("2020-01-01"))}, "x = datetime64"),
    "complex": ({"x": X + 1j}, "x = complex128"),
    "one number": ({"x": 3.0}, r"x = shape \(\): give a row for each example"),
    "no row": ({"x": X[:0], "y": Y[:0]}, r"x = shape \(0, 4\)"),
    "masked": ({"x": np.ma.masked_greater(X, 0.5)}, "x = MaskedArray: .*masked"),
    "sparse": ({"x": torch.tensor(X).to_sparse()}, "x = Tensor: .*[Ss]parse"),
    "meta": ({"x": torch.ones(ROWS, 4, device="meta")}, "x = Tensor: .*meta"),
    "NaN": ({"x": nan_at(3)}, "x = nan: of example 3"),
    "infinity": ({"x": nan_at(5, -np.inf)}, "x = -inf: of example 5"),
    "beyond the precision": ({"x": nan_at(6, 1e300)}, r"x = 1e\+300: of example 6, is not finite in float32"),
    "a NaN target": ({"y": np.where(Y == 2, np.nan, Y), "model": nn.Linear(4, 1)}, "y = nan: of example 2"),
    "NaN in the test set": ({"test": (nan_at(4), Y)}, "test = nan: of example 4"),
    "truth values": ({"y": Y > 1}, "y = bool: .*give 0 and 1"),
    "too wide": ({"y": np.array([2**63 + 1] * ROWS, dtype=np.uint64)}, "y = 9223372036854775809"),
    "beyond words": ({"y": [10**30] * ROWS}, "y = object: give an array of numbers"),
    "below zero": ({"y": Y - 1}, r"y = labels -1 \.\. 1: classes are numbered from 0"),
    "from one": ({"y": Y + 1}, r"problem\.model = .*labels 1 \.\. 3; .*take 1 off the labels, or give 4 outputs"),
    "one logit": ({"y": Y % 2, "model": nn.Linear(4, 1)}, r"gives 1 output for labels 0 \.\. 1; .*squared_error"),
    "ages": ({"y": Y + 20, "model": nn.Linear(4, 1)}, r"gives 1 output for labels 20 \.\. 22; .*squared_error"),
    "too few outputs": ({"model": nn.Linear(4, 2)}, r"gives 2 outputs for labels 0 \.\. 2; give one for each of the 3"),
    "classes as floats": ({"y": Y * 1.0}, r"gives 3 outputs, and the targets are real numbers.*astype\(int\)"),
    "one-hot": ({"y": np.eye(3)[Y]}, r"y = shape \(12, 3\): .*argmax"),
    "a column": ({"y": Y[:, None]}, r"y = shape \(12, 1\): give one number for each input"),
    "cross-entropy of floats": ({"y": Y * 1.0, "loss": "cross_entropy"}, "y = float64: are real numbers"),
    "a loss that is none": ({"loss": nn.MSELoss}, r"problem\.loss = MSELoss: give a name"),
    "losses": ({"loss": ["log_cosh"]}, r"problem\.loss = list: give a name"),
    "a number of clients": ({"clients": 5}, "clients = 5: give for each client the indices"),
    "no client": ({"clients": []}, r"clients = \[\]: give for each client"),
    "owners": ({"clients": Y}, "clients = 12 numbers: .*flatnonzero"),
    "names": ({"clients": {"a": [0], "b": [1]}}, "clients = {'a'.*give for each client"),
    "masks": ({"clients": [Y > 1]}, "clients = list 0: .*of a mask"),
    "lists of lists": ({"clients": [[[1], [2, 3]]]}, "clients = list 0: give whole numbers"),
    "inputs alone": ({"test": X}, "test = ndarray: give inputs and targets"),
    "three parts": ({"test": (X, Y, Y)}, "test = 3 parts: give inputs and targets"),
    "fewer targets": ({"test": (X, Y[:3])}, r"test = shape \(3,\): give one number for each input"),
    "other targets": ({"test": (X, ONES)}, "test = float64: its targets are real numbers"),
    "half": ({"dtype": torch.float16}, r"dtype = torch\.float16: take torch\.float32 or torch\.float64"),
    "NumPy's": ({"dtype": np.float32}, "dtype = .*numpy.*: take torch"),
    "a device": ({"device": "tpu"}, "device = tpu: name one of: auto, cpu, cuda"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_cannot_be_learnt_from_is_refused_with_the_reason(name):
    changes, words = ARGUMENTS[name]
    with pytest.raises(InputError, match=words) as caught:
        own(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"x": torch.tensor(X).bfloat16()},
        {"x": X.astype(np.float16)},
        {"x": X.astype(np.longdouble)},
        {"x": X.astype(">f8"), "y": Y.astype(">i4")},
        {"x": [torch.tensor(row, requires_grad=True) for row in X]},
        {"x": X[::-1]},
        {"model": nn.Linear(4, 10)},
        {"test": ((X * 9).astype(int), Y)},
        {"test": (X[:0], Y[:0])},
        {"y": Y.astype(np.uint8)},
        {"device": torch.device("cpu")},
        {"model": nn.Linear(4, 3).half()},
    ],
)
def test_what_is_meant_as_numbers_is_taken(changes):
    assert own(**changes).status == "finished"


def test_classes_are_those_of_the_model():
    """Of ten classes the labels have three: each of a client's examples is counted among ten."""
    problem = fedsim.supervised(X, Y, model=nn.Linear(4, 10), clients=CLIENTS)
    assert (problem.data.num_classes, problem.dataset.num_classes) == (10, 3)


@pytest.mark.parametrize("loss", ["squared_error", "log_cosh"])
def test_a_loss_that_is_named_says_what_whole_numbers_are(loss):
    problem = fedsim.supervised(X, Y + 20, model=nn.Linear(4, 1), clients=CLIENTS, loss=loss)
    assert problem.dataset.num_classes == 0
    assert problem.data.y.tolist() == (Y + 20).tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_problem_keeps_what_it_was_given(dtype):
    """The precision of the problem, in which NumPy and PyTorch would share memory, and every argument of it."""
    x, y = X.astype(dtype), Y.astype(dtype)
    held, tensor, lists = (x[:3].copy(), y[:3].copy()), torch.from_numpy(x.copy()), [np.arange(5), np.arange(5, ROWS)]
    precision = torch.from_numpy(x).dtype
    model = nn.Linear(4, 1).to(precision)
    given = {"model": model, "clients": lists, "test": held, "dtype": precision}
    for inputs in (x, tensor):
        problem = fedsim.supervised(inputs, y, **given)
        parts = [problem.data.x, problem.data.y, problem.x_test, problem.y_test, problem.data.order, problem.initial()]
        before = [part.clone() for part in parts]
        for lent in (inputs, y, *held, *lists, model.weight.data):
            lent += 1
        after = [problem.data.x, problem.data.y, problem.x_test, problem.y_test, problem.data.order, problem.initial()]
        assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
        for lent in (inputs, y, *held, *lists, model.weight.data):
            lent -= 1


@pytest.mark.parametrize("hidden", [[2**40], [2**62], [300_000, 300_000, 300_000]])
def test_a_model_that_no_memory_holds_names_the_option(hidden):
    experiment = fedsim.experiment(rounds=1, problem={"model": {"kind": "mlp", "hidden": hidden}})
    with pytest.raises(InputError, match=r"^problem\.model = mlp: does not fit in this machine's memory"):
        fedsim.run(experiment, save=False)


def test_a_model_is_refused_from_the_size_on_of_which_four_copies_have_no_room(monkeypatch):
    monkeypatch.setattr(layers, "room", lambda: 4 * 4 * 100)
    with torch.device("meta"):
        fits, large = nn.Linear(99, 1), nn.Linear(100, 1)
    layers.materialise(fits)
    with pytest.raises(MemoryError):
        layers.materialise(large)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("x"), False),
    ],
)
def test_pytorch_says_in_words_that_there_is_no_memory(error, found):
    assert memory.no_room(error) is found


def test_a_model_that_memory_has_no_second_copy_of_is_named():
    class Once(nn.Linear):
        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")

    with pytest.raises(InputError, match=r"^problem\.model = Once: does not fit in this machine's memory"):
        own(model=Once(4, 3))


def test_inputs_that_memory_has_no_array_for_are_named():
    class Large:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            raise MemoryError("Unable to allocate 7 PiB")

    with pytest.raises(InputError, match=r"^x = Large: does not fit in this machine's memory"):
        own(x=Large())
