"""Supervised learning: clients with examples of their own, one model, a central test set.

minimise sum_i (n_i / n) f_i(theta), f_i the mean loss over client i's n_i examples. The data lie once on the device, as
one tensor; a client is a range of an index list, so a hundred thousand clients cost two numbers each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.attacks.attack import Attack, ExampleDraws, Victim
from fedsim.core.errors import InputError, naming, one_line
from fedsim.core.options import options
from fedsim.core.plugins import HasPlugins
from fedsim.core.streams import SERVER, Streams
from fedsim.nets.dropout import prepare
from fedsim.nets.footprint import footprint
from fedsim.nets.functional import Functional
from fedsim.nets.losses import LOSSES, Loss, loss_named
from fedsim.nets.network import PlainNetwork
from fedsim.nets.stack import Layout, Stack
from fedsim.parallel.cores import spread
from fedsim.problems.base import (
    CLIENTS_EVALUATED,
    EVALUATED_AT_ONCE,
    PARTITION,
    Examples,
    Model,
    Setting,
    Trial,
    choose_device,
)
from fedsim.problems.datasets import Dataset
from fedsim.problems.models.layers import initialise
from fedsim.problems.partitions.base import Partition, noisy_labels
from fedsim.problems.partitions.cached import cached_partition

ATTACKED_AT_ONCE = 2**21
"""The same of an attack, which also goes back through them; small, too, so that all cores have work."""
STATISTICS = ("mean", "p10", "worst")
"""What is said of the clients' accuracies, in the names of measures."""
EXAMPLES_EVALUATED = 20_000


@options
class SupervisedOptions(HasPlugins):
    """A model that is trained on a data set, which is dealt to clients as the partition says."""

    parts: ClassVar[Mapping[str, str]] = {"dataset": "datasets", "model": "models"}

    dataset: Any = "digits"
    """What is learned from."""
    model: Any = "mlp"
    """What is trained."""
    loss: Literal["cross_entropy", "squared_error", "log_cosh"] | None = None
    """Loss of an example. Not given: cross_entropy of classes, squared_error of numbers."""
    start: str | None = None
    """A file with a state dict to start from (.safetensors, .pt). Not given: the model starts as it is made."""

    def build(self, setting: Setting) -> Supervised:
        """The data, dealt to clients, and the model, on its device."""
        streams = Streams(setting.seed)
        dataset: Dataset = self.made["dataset"].load(setting.folder)
        seed = streams.derive("partition")
        partition = cached_partition(setting.partition, dataset, seed)
        if setting.partition.noise:
            noisy = noisy_labels(dataset.y, dataset.num_classes, setting.partition.noise, seed)
            if partition.holdout_order is not None:  # what clients are judged on stays clean
                noisy[partition.holdout_order] = dataset.y[partition.holdout_order]
            dataset = replace(dataset, y=noisy)
        problem = Supervised(
            dataset,
            partition,
            build_model(self.made["model"], dataset, streams),
            loss=self.loss,
            device=setting.device,
            dtype=setting.dtype,
        )
        if self.start is not None:
            problem.start_from(load_start(Path(self.start)))
        return problem


def build_model(made: Any, dataset: Dataset, streams: Streams) -> nn.Module:
    """The model that options describe, to fit a data set, with initial parameters of the named draws."""
    try:
        # A plug-in's layers may draw their parameters from the global generator when they are made.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(streams.derive("model") & 0xFFFFFFFF)
            model: nn.Module = made.build(dataset.x.shape[1:], dataset.num_classes, dataset.vocabulary)
    except InputError as error:
        raise InputError("problem.model", error.value, error.remedy) from None
    initialise(model, streams)
    return model


@dataclass(frozen=True)
class _Rows:
    """Examples that a model is judged on: of x and y those with the numbers `index`, int64 [n]; None: all.

    source: which set the numbers are of, `test` or `train`.
    """

    source: str
    x: Tensor
    y: Tensor
    index: Tensor | None

    @property
    def targets(self) -> Tensor:
        """Targets [n]."""
        return self.y if self.index is None else self.y[self.index]

    @property
    def numbers(self) -> Tensor:
        """The examples' numbers, int64 [n]."""
        return torch.arange(len(self.x), device=self.x.device) if self.index is None else self.index


class Supervised:
    """A supervised problem on a device.

    num_clients: N. sizes: int64 [N] on the CPU, training examples of each, at least one; largest: the
    largest of them. dimension: d. data: the training examples. model: what is trained on them.
    """

    oracle = None

    def __init__(
        self,
        dataset: Dataset,
        partition: Partition,
        model: nn.Module,
        *,
        loss: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dataset, self.partition = dataset, partition
        self.device, self.dtype = torch.device(device), dtype
        fitting = _fitting_loss(dataset, loss)
        prepared = prepare(model).to("cpu", dtype).train()
        _check_model(prepared, self._tensor(dataset.x[:2]).cpu(), dataset.num_classes or 1)
        module = prepared.to(self.device)
        self.functional = Functional(copy.deepcopy(module).eval())
        trained = {name: own for name, own in module.named_parameters() if own.requires_grad}
        layout = Layout.of(trained)
        self._start = layout.flatten(trained)
        x, y = self._tensor(dataset.x), self._tensor(dataset.y)
        self.x_test, self.y_test = self._tensor(dataset.x_test), self._tensor(dataset.y_test)
        self.data = Examples(x, y, *_ranges(partition.order, partition.offset, self.device), dataset.num_classes)
        self.examples, self.sizes = self.data.count, self.data.count.cpu()
        self.largest = int(self.sizes.max())
        self.model = Model(module, layout, fitting, footprint(module, x[:1]))

    @property
    def num_clients(self) -> int:
        """N, how many clients there are."""
        return len(self.sizes)

    @property
    def dimension(self) -> int:
        """d, how many parameters the model has."""
        return self.model.layout.dimension

    def initial(self) -> Tensor:
        """The parameters to start from, [d]; a copy."""
        return self._start.clone()

    @property
    def bounds(self) -> None:
        """Parameters of a model may be anything."""
        return None

    def start_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Start from a state dict instead of the model's own initial parameters."""
        if not isinstance(tensors, Mapping):
            raise InputError("problem.start", type(tensors).__name__, "is not a state dict")
        held = dict(self.model.module.state_dict())
        for name, own in held.items():
            found = tensors.get(name)
            if isinstance(found, Tensor) and found.shape == own.shape and bool(torch.isfinite(found).all()):
                held[name] = found.to(own.device, own.dtype)
            elif name in self.model.layout.names or found is not None:
                shape = tuple(found.shape) if isinstance(found, Tensor) else "none"
                remedy = f"the model wants a finite tensor of shape {tuple(own.shape)}, the state has shape {shape}"
                raise InputError("problem.start", name, remedy)
        self.model.module.load_state_dict(held)
        self.functional = Functional(copy.deepcopy(self.model.module).eval())
        self._start = self.model.layout.flatten(held)
        self.data.scores.clear()

    def module(self, params: Tensor) -> nn.Module:
        """The model with the parameters of a vector [d]; dropout in it is inactive."""
        prepared = prepare(self.model.module)
        prepared.load_state_dict(self.model.layout.named(params), strict=False)
        return prepared.eval()

    def tensors(self, params: Tensor) -> Mapping[str, Tensor]:
        """The state dict of the model with the parameters of a vector [d]."""
        return self.module(params).state_dict()

    def illustrate(self, place: Callable[[str], Path], params: Tensor | None) -> None:
        """Draw which classes the clients have, before the first round."""
        from fedsim import plots

        if params is None:
            data, split = self.dataset, self.partition
            plots.label_distribution(data.y, split.offset, split.order, data.num_classes or None, place(PARTITION))

    def labels(self) -> np.ndarray:
        """The mean label of each client's examples, [N]."""
        sizes = self.sizes.numpy()
        owner = np.repeat(np.arange(len(sizes)), sizes)
        labels = self.data.y[self.data.order].cpu().numpy().astype(np.float64)
        means: np.ndarray = np.bincount(owner, labels, len(sizes)) / sizes
        return means

    def evaluate(self, params: Tensor, *, clients: bool, on: Collection[str] = ("test",)) -> dict[str, float]:
        """Loss and accuracy of the global model.

        on: `test`, the test set; `train`, all the clients' training examples together, as global_train_loss and
        global_train_accuracy. clients: also the accuracies of the clients' own examples.
        """
        found: dict[str, float] = {}
        for name, rows in self._sets(on).items():
            found |= self._scores(name, self._outputs(params, rows), rows)
        if clients:
            own, count = self._own()
            found |= self._client_scores("client", self._outputs(params, own), own, count)
        return found

    def attacked(self, params: Tensor, trial: Trial) -> dict[str, float]:
        """Loss and accuracy of the global model where each example is attacked, by itself, under this very model.

        For each attack test_<label>_loss, test_<label>_accuracy and so on, <label> the attack's; with `trial.clients`
        client_<label>_accuracy_mean, _p10 and _worst, on the examples that client accuracies are about. A sample of a
        set is drawn without replacement, by a draw that is the same in all runs. What an attack draws for an example is
        named by the number of the example and whether it is one of the test set: the same whenever it is attacked.
        """
        model = self.model
        network = PlainNetwork(copy.deepcopy(model.module).eval(), model.layout, model.loss)
        attacked = network, model.layout.stack(params)
        sets = {name: _sampled(rows, trial.examples) for name, rows in self._sets(trial.on).items()}
        found: dict[str, float] = {}
        for attack in trial.attacks:
            for name, rows in sets.items():
                outputs = self._attacked_outputs(*attacked, attack, rows, trial.streams)
                found |= self._scores(f"{name}_{attack.label}", outputs, rows)
            if trial.clients:
                own, count = self._own()
                outputs = self._attacked_outputs(*attacked, attack, own, trial.streams)
                found |= self._client_scores(f"client_{attack.label}", outputs, own, count)
        return found

    def attacked_measures(self, trial: Trial) -> list[str]:
        """The names that `attacked` gives. InputError: an attack does not go with what it is to be made on."""
        if trial.clients and not self.has_accuracy:
            raise InputError("attack_clients", True, "clients are judged by accuracy, and these labels are no classes")
        sets = self._sets(trial.on)
        rows = [*sets.values(), *([self._own()[0]] if trial.clients else [])]
        if not rows:
            raise InputError("attacks", trial.attacks[0].label, "there is no test set to attack; put train into on")
        for number, attack in enumerate(trial.attacks):
            with naming(f"attacks.{number}"):
                for source in {id(own.x): own.x for own in rows}.values():
                    self.check_attack(attack, source)
        kinds = ("loss", "accuracy")[: 1 + self.has_accuracy]
        labels = [attack.label for attack in trial.attacks]
        return [f"{name}_{label}_{kind}" for label in labels for name in sets for kind in kinds] + [
            f"client_{label}_accuracy_{which}" for label in labels if trial.clients for which in STATISTICS
        ]

    def check_attack(self, attack: Attack, x: Tensor) -> None:
        """InputError: the attack does not go with inputs x [n, ...], or with the number of classes."""
        if not x.is_floating_point():
            raise InputError(
                "kind", attack.label, "the inputs are tokens, which cannot be moved a little; leave it out"
            )
        least = getattr(attack, "least_classes", 0)
        if self.dataset.num_classes < least:
            raise InputError("kind", attack.label, f"it needs {least} classes at least; leave it out")
        attack.check(x)

    def _sets(self, on: Collection[str]) -> dict[str, _Rows]:
        """The examples of each set that is measured, by the beginning of the measures' names."""
        found = {}
        if "test" in on and len(self.x_test):
            found["test"] = _Rows("test", self.x_test, self.y_test, None)
        if "train" in on:
            found["global_train"] = _Rows("train", self.data.x, self.data.y, self.data.order)
        return found

    def _scores(self, name: str, outputs: Tensor, rows: _Rows) -> dict[str, float]:
        correct = self.model.loss.correct(outputs, rows.targets)
        accuracy = {} if correct is None else {f"{name}_accuracy": float(correct.double().mean())}
        return {f"{name}_loss": float(self.model.loss.examples(outputs, rows.targets).double().mean()), **accuracy}

    def losses(
        self,
        params: Tensor,
        clients: Tensor,
        sampled: Callable[[int], Tensor] | None = None,
        streams: Streams | None = None,  # noqa: ARG002
        turn: int = 0,  # noqa: ARG002
    ) -> Tensor:
        """Mean and root of the mean square of the losses of each client's examples, float64 [C, 2].

        clients: int64 [C]. sampled: which of a client's examples, by their places; None: all. Every client by itself,
        so that its numbers do not depend on who else is asked. There is no noise to be drawn.
        """
        data, loss = self.data, self.model.loss

        def losses(client: int) -> Tensor:
            index = data.order[data.begin[client] : data.begin[client] + data.count[client]]
            index = index if sampled is None else index[sampled(client)]
            outputs = self._forward(params, data.x[index])
            found = loss.examples(outputs, data.y[index]).double()
            return torch.stack((found.mean(), found.square().mean().sqrt()))

        found = spread(losses, clients.tolist())
        return torch.stack(found) if found else torch.zeros((0, 2), dtype=torch.float64, device=self.device)

    def example_losses(self, params: Tensor) -> Tensor:
        """The loss of each training example under parameters [d], [n], dropout inactive."""
        outputs = self._outputs(params, _Rows("train", self.data.x, self.data.y, None))
        return self.model.loss.examples(outputs, self.data.y)

    def evaluates_clients(self, wanted: bool | str) -> bool:
        """Whether clients are evaluated: as asked, or, for "auto", where it costs little.

        Automatically with held-out examples up to 1,000 clients; with none, on the clients' training examples if there
        are no more than 20,000 of them.
        """
        if not self.has_accuracy:
            return False
        if isinstance(wanted, bool):
            return wanted
        own = self.partition.holdout_order is None and self.partition.order_test is None
        return self.num_clients <= CLIENTS_EVALUATED and not (own and len(self.data.order) > EXAMPLES_EVALUATED)

    def measures(self, clients: bool | str, on: Collection[str] = ("test",)) -> list[str]:
        """The names that `evaluate` gives, with clients as `evaluates_clients` decides."""
        kinds = ("loss", "accuracy")[: 1 + self.has_accuracy]
        central = [f"{name}_{kind}" for name in self._sets(on) for kind in kinds]
        own = [f"client_accuracy_{which}" for which in STATISTICS] if self.evaluates_clients(clients) else []
        return central + own

    @property
    def has_accuracy(self) -> bool:
        """Whether predictions are right or wrong."""
        return self.model.loss.correct(torch.zeros(1, 1), torch.zeros(1)) is not None

    def _own(self) -> tuple[_Rows, Tensor]:
        """The examples that clients are judged on, one client after the other, and how many each has, int64 [N].

        Those of the test set, else those held out, else, where nobody has any, those that are trained on.
        """
        split = self.partition
        if split.order_test is not None and split.offset_test is not None and len(split.order_test):
            order, _, count = _ranges(split.order_test, split.offset_test, self.device)
            return _Rows("test", self.x_test, self.y_test, order), count
        if split.holdout_order is not None and split.holdout_offset is not None and len(split.holdout_order):
            order, _, count = _ranges(split.holdout_order, split.holdout_offset, self.device)
            return _Rows("train", self.data.x, self.data.y, order), count
        return _Rows("train", self.data.x, self.data.y, self.data.order), self.examples

    def _client_scores(self, name: str, outputs: Tensor, rows: _Rows, count: Tensor) -> dict[str, float]:
        correct = self.model.loss.correct(outputs, rows.targets)
        assert correct is not None
        owner = torch.repeat_interleave(torch.arange(len(count), device=self.device), count)
        right = torch.zeros(len(count), dtype=torch.float64, device=self.device)
        accuracy = (right.index_add_(0, owner, correct.double()) / count)[count > 0]
        values = (accuracy.mean(), torch.quantile(accuracy, 0.1), accuracy.min())
        return {f"{name}_accuracy_{which}": float(value) for which, value in zip(STATISTICS, values, strict=True)}

    def _outputs(self, params: Tensor, rows: _Rows) -> Tensor:
        batch = min(max(EVALUATED_AT_ONCE // self.model.footprint.activations, 32), 2048)

        def outputs(first: int) -> Tensor:
            own = slice(first, first + batch)
            return self._forward(params, rows.x[own] if rows.index is None else rows.x[rows.index[own]])

        return torch.cat(spread(outputs, range(0, len(rows.targets), batch)))

    def _attacked_outputs(
        self, network: PlainNetwork, model: Stack, attack: Attack, rows: _Rows, streams: Streams
    ) -> Tensor:
        """Outputs [n, K] for attacked inputs. The numbers do not depend on how many cores there are."""
        batch = min(max(ATTACKED_AT_ONCE // self.model.footprint.activations, 16), 128)
        if getattr(attack, "only_judges", False):  # it takes batches of its own, one after the other
            batch = max(len(rows.numbers), 1)
        # Apart from what clients draw while they train, and the test set's examples apart from the others.
        named = Streams(streams.derive(f"evaluation/{rows.source}"))

        def outputs(numbers: Tensor) -> Tensor:
            x, targets = rows.x[numbers].unsqueeze(0), rows.y[numbers].unsqueeze(0)
            victim = Victim(network, model, self.model.loss, ExampleDraws(named, numbers))
            return network.outputs(model, attack.perturb(victim, x, targets))[0]

        return torch.cat(spread(outputs, torch.split(rows.numbers, batch)))

    def _forward(self, params: Tensor, x: Tensor) -> Tensor:
        model, _ = self.functional.bind(self.model.layout.named(params).values())
        with torch.no_grad():
            found: Tensor = model(x)
        return found

    def _tensor(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else torch.int64)


def _fitting_loss(dataset: Dataset, name: str | None) -> Loss:
    """The loss of that name, or the labels' own; refuses one that does not go with the labels."""
    classes = dataset.num_classes > 0
    loss = loss_named(name or ("cross_entropy" if classes else "squared_error"))
    if classes != (loss is LOSSES["cross_entropy"]):
        held = "classes" if classes else "real numbers"
        raise InputError("problem.loss", name, f"the labels of {dataset.name} are {held}; leave it out")
    return loss


def _check_model(model: nn.Module, x: Tensor, outputs: int) -> None:
    """Refuse a model that does not fit inputs x [2, ...], or whose forward pass draws or changes what it should not.

    On the CPU, whose generator a draw would move.
    """
    name = type(model).__name__
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("problem.model", name, "it has no parameter to train")
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise InputError("problem.model", name, "its initial parameters are not all finite")
    before = torch.get_rng_state()
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    try:
        with torch.no_grad():
            found = model(x)
            apart = torch.cat([model(x[row : row + 1]) for row in range(len(x))])
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        line = one_line(error, 200)
        raise InputError("problem.model", name, f"does not fit inputs of shape {tuple(x.shape[1:])}: {line}") from error
    finally:
        drawn = not torch.equal(before, torch.get_rng_state())
        torch.set_rng_state(before)
    if drawn:
        raise InputError(
            "problem.model",
            name,
            "its forward draws from the global generator; use torch.nn.Dropout as a layer of its own",
        )
    if any(not torch.equal(buffers[key], buffer) for key, buffer in model.named_buffers()):
        raise InputError("problem.model", name, "its forward changes a buffer, which clients would share")
    if tuple(found.shape) != (len(x), outputs):
        raise InputError("problem.model", name, f"gives outputs of shape {tuple(found.shape)[1:]}, not {(outputs,)}")
    if not torch.allclose(found, apart, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise InputError("problem.model", name, "its outputs for an example depend on the others of the batch")


def load_start(path: Path) -> dict[str, Tensor]:
    """A state dict to start from: .safetensors, or .pt/.pth read without running any code in it."""
    if not path.is_file():
        raise InputError("problem.start", str(path), "there is no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return loaded
    except Exception as error:
        line = str(error).strip().partition("\n")[0][:120]
        raise InputError("problem.start", str(path), f"cannot be read as a state dict: {line}") from error


def _sampled(rows: _Rows, count: int | None) -> _Rows:
    """A sample of at most so many of the examples: the same of the same set, whatever order its numbers are in."""
    numbers = rows.numbers.sort().values
    if count is None or count >= len(numbers):
        return rows
    order = Streams(0).permutation("attacked", torch.tensor([SERVER], device=numbers.device), len(numbers))[0]
    return replace(rows, index=numbers[order[:count].sort().values])


def _ranges(order: np.ndarray, offset: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    begins = torch.from_numpy(np.asarray(offset, dtype=np.int64)).to(device)
    return (
        torch.from_numpy(np.asarray(order, dtype=np.int64)).to(device),
        begins[:-1],
        begins[1:] - begins[:-1],
    )


def supervised(
    x: Any,
    y: Any,
    *,
    model: nn.Module,
    clients: Iterable[Any],
    test: tuple[Any, Any] | None = None,
    loss: str | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
) -> Supervised:
    """A problem from arrays of your own.

    x: inputs [n, ...], floats or integer tokens. y: class numbers [n], or real targets. model: any module whose
    outputs are
    [B, classes] (or [B, 1] for real targets); its parameters are where training starts. clients: for each client the
    indices of its examples. test: inputs and targets to judge the global model on; without it the training examples
    are.
    """
    inputs, targets = _array("x", x), _array("y", y)
    held = (inputs, targets) if test is None else (_array("test", test[0]), _array("test", test[1]))
    classes = 0
    if loss != "squared_error" and np.issubdtype(targets.dtype, np.integer):
        classes = 1 + max(int(part.max()) for part in (targets, held[1]) if part.size)
    else:
        targets, held = targets.astype(np.float64), (held[0], held[1].astype(np.float64))
    dataset = Dataset("own", inputs, targets, *held, num_classes=classes)
    partition = Partition.from_lists(list(clients))
    partition.check(dataset)
    return Supervised(
        dataset,
        partition,
        model,
        loss=loss,
        device=choose_device(device),
        dtype=dtype,
    )


def _array(option: str, values: Any) -> np.ndarray[Any, Any]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if np.issubdtype(array.dtype, np.floating):
        return array
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(option, str(array.dtype), "give numbers: floats, class numbers or tokens")
    return array.astype(np.int64)
