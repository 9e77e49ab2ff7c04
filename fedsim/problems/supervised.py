"""Supervised learning: clients with examples of their own, one model, a central test set.

minimise sum_i (n_i / n) f_i(theta), f_i the mean loss over client i's n_i examples. The data lie once on the device, as
one tensor; a client is a range of an index list, so a hundred thousand clients cost two numbers each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError
from fedsim.core.options import options, table_of
from fedsim.core.plugins import HasPlugins, hold_returned, kind_of
from fedsim.core.streams import Streams
from fedsim.nets.footprint import footprint
from fedsim.nets.functional import Functional
from fedsim.nets.halves import width_of_features
from fedsim.nets.heads import AnyHead, Head
from fedsim.nets.losses import hold_loss
from fedsim.nets.normalisation import MEAN, SECOND, Statistics, layers_of, statistics_of, vector_parts
from fedsim.nets.prepared import prepare
from fedsim.nets.private import Private
from fedsim.nets.selection import Selection, leaves_of, selected, written
from fedsim.nets.stack import Layout
from fedsim.parallel.cores import spread
from fedsim.plots.labels import PARTITION
from fedsim.problems.attacked import attacked, attacked_measures
from fedsim.problems.base import (
    CLIENTS_EVALUATED,
    EVALUATED_AT_ONCE,
    Examples,
    Model,
    Setting,
    Trial,
)
from fedsim.problems.datasets import Dataset
from fedsim.problems.dealt import draw_labels, owners_names
from fedsim.problems.judged import Judged, Rows, ranges
from fedsim.problems.measures import Measure
from fedsim.problems.modules import (
    build_model,
    check_module,
    fitting_loss,
    hold_binary,
    hold_module,
    hold_one,
    hold_outputs,
    hold_tokens,
    load_start,
    started,
)
from fedsim.problems.normalisation import Normalisation
from fedsim.problems.partitions.base import Partition, joined, noisy_labels
from fedsim.problems.partitions.cached import cached_partition
from fedsim.problems.partitions.newcomers import parted_newcomers
from fedsim.problems.partitions.validation import set_aside
from fedsim.problems.public import OPTION as PUBLIC
from fedsim.problems.public import Public, hold_alike

EXAMPLES_EVALUATED = 20_000
"""Training examples up to which clients are evaluated on them without being asked for."""
SHARED = "problem.shared"
"""The option of which a refused selection is."""
WORK_AT_ONCE = 2**26
"""Multiply-adds of a batch of an evaluation: all cores have some of a large model, and recurrent ones stay in cache."""


@options
class SupervisedOptions(HasPlugins):
    """A model that is trained on a data set, which is dealt to clients as the partition says."""

    values_only: ClassVar[bool] = False
    parts: ClassVar[Mapping[str, str]] = {"dataset": "datasets", "model": "models", "loss": "losses"}

    dataset: Any = "digits"
    """What is learned from."""
    model: Any = "mlp"
    """What is trained."""
    loss: Any = None
    """Loss of an example. Not given: cross_entropy of classes, squared_error of numbers, binary_cross_entropy of tags.
    """
    head: AnyHead = None
    """Where in what the model returns its outputs are: a key, an attribute or a place, or a table that says how they
    lie, too. Not given: it returns them alone.
    """
    start: str | None = None
    """A file with a state dict to start from (.safetensors, .pt). Not given: the model starts as it is made."""

    normalisation: Annotated[Normalisation | None, table_of(Normalisation)] = None
    """Of normalisation, which a model must have for it. Not given: statistics of batches are averaged."""

    shared: Selection = "all"
    """What alone crosses, all other parameters staying with each client: all, body (of all layers but the last), head
    (of that), norm (of layers that normalise), names of parameters or layers, where * is anything, or several of these;
    or all but these, { not = "head" }.
    """

    public: Public | None = None
    """Inputs without labels that the server has, for strategies that distil. Not given: it has none."""

    split: Literal["fixed", "seed"] = "fixed"
    """Where a test set is drawn from all examples: fixed, by the data set's split_seed, one for all seeds of a run; or
    by the run's own seed, so that what differs between seeds has the choice of the test set in it, too.
    """

    def __post_init__(self) -> None:
        hold_one(self.model, "model")
        super().__post_init__()

    def build(self, setting: Setting) -> Supervised:
        """The data, dealt to clients, and the model, on its device."""
        streams = Streams(setting.seed)
        dataset = self._loaded(setting.folder, streams)
        seed = streams.derive("partition")
        dealt = setting.partition
        partition = cached_partition(dealt, dataset, seed)
        partition = set_aside(partition, dealt.validation, dealt.validation_clients, seed)
        public = None
        if self.public is not None:
            partition, public = self.public.take(dataset, partition, seed, setting.folder)
        if dealt.noise:
            noisy = noisy_labels(dataset.y, dataset.num_classes if dataset.labelled else 0, dealt.noise, seed)
            if partition.holdout_order is not None:  # what clients are judged on stays clean
                noisy[partition.holdout_order] = dataset.y[partition.holdout_order]
            dataset = replace(dataset, y=noisy)
        partition, newcomers = parted_newcomers(partition, dealt.newcomers, seed)
        problem = Supervised(
            dataset,
            partition,
            build_model(self.made["model"], dataset, streams),
            loss=self.made.get("loss"),
            head=self.head,
            device=setting.device,
            dtype=setting.dtype,
            statistics=None if self.normalisation is None else self.normalisation.shared,
            public=public,
            newcomers=newcomers,
        )
        if self.start is not None:
            problem.start_from(load_start(Path(self.start)))
        if self.normalisation is not None and self.normalisation.private:
            try:
                problem = problem.keeping(*self.normalisation.private)
            except InputError as error:
                given = self.normalisation.statistics
                raise InputError("problem.normalisation.statistics", given, error.remedy) from None
        return problem.sharing(self.shared)

    def _loaded(self, folder: DataFolder, streams: Streams) -> Dataset:
        """The data set, its test set drawn as `split` says."""
        loader = self.made["dataset"]
        if self.split == "seed":
            kind = kind_of("datasets", loader)
            if not hasattr(loader, "split_seed"):
                raise InputError("problem.split", self.split, f"{kind} draws no test set; remove it")
            if loader.split_seed:
                remedy = f"the test set cannot follow split_seed = {loader.split_seed}, too; remove one of them"
                raise InputError("problem.split", self.split, remedy)
            loader = replace(loader, split_seed=streams.seed_of("split"))  # 63 bits, as whole numbers of TOML have
        dataset: Dataset = loader.load(folder)
        hold_returned("problem.dataset", "datasets", loader, "load", dataset, Dataset)
        if dataset.num_classes == 1:
            raise InputError("problem.dataset", dataset.name, "all examples are of one class; nothing can be learnt")
        files = [place for place in dict.fromkeys(folder.found) if place.is_file()]
        dataset = replace(dataset, told={**dataset.told, "files": files})
        if self.split == "seed" and not dataset.drawn:
            raise InputError("problem.split", self.split, f"{dataset.name} has a test set of its own; remove it")
        if not dataset.drawn and hasattr(loader, "split_seed") and loader.split_seed:
            fault = f"{dataset.name} has a test set of its own; remove it"
            raise InputError("problem.dataset.split_seed", loader.split_seed, fault)
        return dataset


class Supervised:
    """A supervised problem on a device.

    num_clients: N. sizes: int64 [N] on the CPU, training examples of each, at least one; largest: the
    largest of them. dimension: d. data: the training examples. model: what is trained on them. Where entries of it stay
    with each client, see `keeping`, d counts the shared ones, and no model is for all. public: inputs that the server
    has, [n, ...]; None: it has none. judged: what models are judged on. newcomers: what clients are judged on who never
    take part, and are none of the N; in `data` they follow them. None: there are none.
    """

    oracle = None
    may_fail = False

    def __init__(
        self,
        dataset: Dataset,
        partition: Partition,
        model: nn.Module,
        *,
        loss: object = None,
        head: Head | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        statistics: Statistics | None = None,
        public: np.ndarray[Any, Any] | None = None,
        newcomers: Partition | None = None,
    ) -> None:
        self.dataset, self.partition = dataset, partition
        self.device, self.dtype = torch.device(device), dtype
        fitting = fitting_loss(dataset, loss)
        hold_module(model)
        prepared = prepare(model, statistics).to("cpu", dtype).train()
        if statistics is not None and not layers_of(prepared):
            raise InputError("problem.normalisation", statistics, "the model has no batch normalisation; remove it")
        hold_binary(head, dataset)
        few = self._tensor(dataset.x[:2]).cpu()
        outputs = check_module(prepared, few, head, dataset.places, whole=not dataset.num_classes)
        hold_outputs(prepared, outputs, dataset)
        if public is not None:
            hold_alike(public, dataset.x, PUBLIC, "inputs")
        for held, inputs in (("training", dataset.x), ("test", dataset.x_test), ("public", public)):
            if inputs is not None:
                hold_tokens(prepared, inputs, held, dataset.places)
        module = prepared.to(self.device)
        self.functional = Functional(copy.deepcopy(module).eval())
        trained = {name: own for name, own in module.named_parameters() if own.requires_grad}
        carried = statistics_of(module)
        layout = Layout.of(trained, carried)
        self._start = layout.flatten({**trained, **carried})
        x, y = self._tensor(dataset.x), self._tensor(dataset.y)
        self.public = None if public is None else self._tensor(public)
        self.x_test, self.y_test = self._tensor(dataset.x_test), self._tensor(dataset.y_test)
        fitting = fitting.fitted(y, dataset.task, outputs)
        hold_loss(fitting, y, outputs, dtype)
        dealt = [partition] if newcomers is None else [partition, newcomers]
        self.data = Examples(
            x,
            y,
            *ranges(*joined([(part.order, part.offset) for part in dealt]), self.device),
            num_classes=outputs if dataset.num_classes else 0,
            task=dataset.task,
        )
        self.sizes_on_device, self.sizes = self.data.count, self.data.count[: partition.clients].cpu()
        self.largest = int(self.data.count.max())
        self.model = Model(module, layout, fitting, footprint(module, x[:1]))
        first, judged = 0, list[Judged]()
        for part in dealt:
            data = self.data.of(first, first := first + part.clients)
            judged.append(Judged(data, self.x_test, self.y_test, part, fitting))
        self.judged, self.newcomers = judged[0], judged[1] if newcomers is not None else None

    @property
    def num_clients(self) -> int:
        """N, how many clients there are."""
        return len(self.sizes)

    @property
    def dimension(self) -> int:
        """d, how many parameters the model has, its statistics among them, or of them are shared."""
        return self.layout.dimension

    def initial(self) -> Tensor:
        """The parameters to start from, [d]; a copy."""
        return self._shared.clone()

    @property
    def _shared(self) -> Tensor:
        private = self.model.private
        return self._start if private is None else private.split(self._start)[0]

    def keeping(self, *named: str) -> Supervised:
        """The same problem where some of the model's parameters stay with each client, beside those that do already.

        named: `norm`, all of layers that normalise (FedBN); `statistics`, the running ones of batch normalisation
        (SiloBN); `head`, the parameters of the last layer (FedPer); `body`, those of all others; or names of parameters
        or layers, in which * stands for anything. Everybody begins with the model's own. Clients are then judged by
        their own models, on examples that they are not trained on.

        InputError: one names no parameter, or nothing that is trained would be shared.
        """
        leaves = leaves_of(named, self.model.module, self.model.layout, "private")
        return self._keeping(leaves, "private", ", ".join(named))

    def sharing(self, selection: Selection) -> Supervised:
        """The same problem where of what is trained a selection alone is shared; see `problem.shared`.

        InputError: it names no parameter, or all, or none is left.
        """
        module, layout = self.model.module, self.model.layout
        if selection == "all":
            return self
        leaves, trained = selected(selection, module, layout, SHARED), set(layout.names[: layout.trained])
        if leaves == trained:
            remedy = "is all of the model; say all, or leave something to the clients"
            raise InputError(SHARED, written(selection), remedy)
        return self._keeping(trained - leaves, SHARED, written(selection))

    def _keeping(self, leaves: set[str], option: str, value: object) -> Supervised:
        """The same problem where these leaves, too, stay with each client, of which an option says something."""
        found, before = copy.copy(self), self.model.private
        leaves = leaves if before is None else leaves | before.kept
        private = Private.of(leaves, self.model.layout, self._start)
        if private is None:
            raise InputError(option, value, "nothing that is trained would be shared; leave something to be")
        found.model = replace(self.model, private=private)
        return found

    @property
    def trained(self) -> int | None:
        """How many numbers of the parameters, from the first, are trained, where running statistics follow."""
        return self.layout.trained_numbers if self.layout.normalises else None

    @property
    def layout(self) -> Layout:
        """Where everything is that strategies see."""
        private = self.model.private
        return self.model.layout if private is None else private.shared

    def classes(self) -> int:
        """K, how many outputs there are for the one class that an example has. InputError: it has not one."""
        if not self.data.labelled:
            remedy = "prototypes are of classes, of which an example is to have one; take another strategy"
            raise InputError("problem.dataset", self.data.task, remedy)
        return self.data.num_classes

    def features(self) -> int:
        """h, how many numbers the model's head reads of an example. InputError: the model has none that are known."""
        if self.data.task == "classes" and not self.data.labelled:
            kind = type(self.model.module).__name__
            remedy = "reads features at each of several places; take one class an example"
            raise InputError("problem.model", kind, remedy)
        return width_of_features(self.model.module, self.data.x[:2])

    @property
    def bounds(self) -> None:
        """Parameters of a model may be anything."""
        return None

    @property
    def cells(self) -> None:
        """None of them are whole numbers."""
        return None

    def start_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Start from a state dict instead of the model's own initial parameters."""
        module, layers = self.model.module, layers_of(self.model.module)
        running = {f"{name}.{own}" if name else own for name in layers for own in (MEAN, SECOND)}
        module.load_state_dict(started(module, tensors, {*self.model.layout.names, *running}))
        for layer in layers.values():
            statistics, layer.statistics = layer.statistics, "averaged"  # a state dict has variances
            layer.become(statistics)
        self.functional = Functional(copy.deepcopy(module).eval())
        self._start = self.model.layout.flatten(vector_parts(module))
        if self.model.private is not None:
            self.model = replace(self.model, private=replace(self.model.private, start=self._start))
        self.data.scores.clear()

    def module(self, params: Tensor, own: Tensor | None = None) -> nn.Module:
        """The model with the parameters of a vector [d]; dropout in it is inactive.

        own: what a client has of its own, [p], where something stays with clients; by default what it begins with.
        """
        private = self.model.private
        if private is not None:
            params = private.join(params, (private.initial if own is None else own).unsqueeze(0))[0]
        return self.whole_module(params)

    def whole_module(self, model: Tensor) -> nn.Module:
        """The model with these parameters, those that stay with a client among them."""
        prepared = prepare(self.model.module)
        prepared.load_state_dict(self.model.layout.named(model), strict=False)
        for layer in layers_of(prepared).values():
            layer.become("averaged")
        return prepared.eval()

    def tensors(self, params: Tensor) -> Mapping[str, Tensor]:
        """The state dict of the model with the parameters of a vector [d], without what stays with clients."""
        found, private = self.module(params).state_dict(), self.model.private
        return found if private is None else {name: found[name] for name in found if name not in private.own.names}

    def illustrate(self, place: Callable[[str], Path], params: Tensor) -> None:  # noqa: ARG002
        """Draw what labels the clients have."""
        draw_labels(self.dataset, self.partition, self.names, place(PARTITION))

    @cached_property
    def names(self) -> list[str] | None:
        """What the clients are called, where the data set names the owner that each of them is."""
        return owners_names(self.dataset, self.partition)

    def provenance(self) -> Mapping[str, Any]:
        """Where the data are from and what was done to them; see `Dataset`."""
        return self.dataset.provenance()

    def labels(self) -> np.ndarray | None:
        """The mean label of each client's examples, [N]; None where an example has several."""
        if self.data.y.dim() > 1:
            return None
        sizes = self.sizes.numpy()
        owner = np.repeat(np.arange(len(sizes)), sizes)
        labels = self.data.y[self.judged.data.order].cpu().numpy().astype(np.float64)
        means: np.ndarray = np.bincount(owner, labels, len(sizes)) / sizes
        return means

    def evaluate(
        self,
        params: Tensor,
        *,
        clients: bool,
        on: Collection[str] = ("test",),
        metrics: Sequence[Measure] = (),
        fully: bool = False,
    ) -> dict[str, float]:
        """Loss and accuracy of the global model, where there is one, and what other measures say of it.

        on: `test`, the test set; `train`, all the clients' training examples together, as global_train_loss and
        global_train_accuracy; `validation`, the examples that were set aside for that, as validation_loss and so on.
        clients: also the accuracies of the clients' own examples, or their losses. fully: say of these all that is said
        where models are the clients' own.
        """
        if self.model.private is not None:
            remedy = "each client has a model of its own, and none is for all; look at the personal measures of a run"
            raise InputError("params", list(params.shape), remedy)
        found: dict[str, float] = {}
        made: list[tuple[Rows, Tensor]] = []
        for name, rows in self.judged.sets(on).items():
            made.append((rows, self.outputs(params, rows)))
            found |= self.judged.scores(name, made[-1][1], rows, metrics)
        for name, (own, count) in self.judged.by_clients(on).items() if clients else ():
            known = (rows.of(outputs, own) for rows, outputs in made if rows.covers(own))
            if (outputs := next(known, None)) is None:
                outputs = self.outputs(params, own)
            scores = self.judged.personal_scores if fully else self.judged.client_scores
            found |= scores(name, outputs, own, count, metrics)
        return found

    def judged_examples(self, on: Collection[str], *, clients: bool) -> int:
        """How many examples `evaluate` sends through the model."""
        sets = list(self.judged.sets(on).values())
        apart = [rows for rows, _ in self.judged.by_clients(on).values()] if clients else []
        return sum(map(len, sets)) + sum(len(own) for own in apart if not any(rows.covers(own) for rows in sets))

    def attacked_examples(self, trial: Trial) -> int:
        """How many examples `attacked` attacks, by each attack."""
        sets = self.judged.sets(trial.on).values()
        most = [len(rows) if trial.examples is None else min(len(rows), trial.examples) for rows in sets]
        return sum(most) + sum(len(rows) for rows, _ in self.judged.by_clients(trial.on).values() if trial.clients)

    def client_measures(
        self, params: Tensor, metrics: Sequence[Measure] = (), on: Collection[str] = ("test",)
    ) -> dict[str, Tensor]:
        """What each client is judged by; see `Judged.each_client`. Empty where only those set aside are judged."""
        *_, (name, (rows, count)) = self.judged.by_clients(on).items()
        if name != "client" and self.partition.validation_clients is not None:
            return {}
        return self.judged.each_client(self.outputs(params, rows), rows, count, metrics)

    def attacked(self, params: Tensor, trial: Trial) -> dict[str, float]:
        """Loss and accuracy of the global model under attacks; see `fedsim.problems.attacked`."""
        return attacked(self.judged, self.model, params, trial)

    def attacked_measures(self, trial: Trial) -> list[str]:
        """The names that `attacked` gives. InputError: an attack does not go with what it is to be made on."""
        return attacked_measures(self.judged, self.model, trial)

    def losses(
        self,
        params: Tensor,
        clients: Tensor,
        sampled: Callable[[int], Tensor] | None = None,
        streams: Streams | None = None,  # noqa: ARG002
        turn: int = 0,  # noqa: ARG002
    ) -> Tensor:
        """Mean and root of the mean square of the losses of each client's examples, float64 [C, 2].

        params: [d], or a row a client. clients: int64 [C]. sampled: which of a client's examples, by their places;
        None: all. Every client by itself, so that its numbers do not depend on who else is asked. There is no noise to
        be drawn.
        """
        data, loss, offset = self.data, self.model.loss, self.partition.offset

        def losses(row: tuple[int, int]) -> Tensor:
            place, client = row
            index = data.order[int(offset[client]) : int(offset[client + 1])]
            index = index if sampled is None else index[sampled(client)]
            outputs = self._forward(params if params.dim() == 1 else params[place], data.x[index])
            found = loss.examples(outputs, data.y[index]).double()
            return torch.stack((found.mean(), found.square().mean().sqrt()))

        found = spread(losses, list(enumerate(clients.tolist())))
        return torch.stack(found) if found else torch.zeros((0, 2), dtype=torch.float64, device=self.device)

    def example_losses(self, params: Tensor) -> Tensor:
        """The loss of each training example under parameters [d], [n], dropout inactive."""
        outputs = self.outputs(params, Rows("train", self.data.x, self.data.y, None))
        return self.model.loss.examples(outputs, self.data.y)

    def evaluates_clients(self, wanted: bool | str) -> bool:
        """Whether clients are evaluated: as asked, or, for "auto", where it costs little.

        Automatically by their accuracies: with held-out examples up to 1,000 clients; with none, on the clients'
        training examples if there are no more than 20,000 of them.
        """
        if isinstance(wanted, bool):
            return wanted
        if not self.judged.has_accuracy:
            return False
        own = self.partition.holdout_order is None and self.partition.order_test is None
        return self.num_clients <= CLIENTS_EVALUATED and not (own and len(self.judged.data.order) > EXAMPLES_EVALUATED)

    def measures(
        self, clients: bool | str, on: Collection[str] = ("test",), metrics: Sequence[Measure] = ()
    ) -> list[str]:
        """The names that `evaluate` gives, but for counts. InputError: as of `Judged.measures`."""
        return self.judged.measures(on, self.evaluates_clients(clients), metrics)

    def outputs(self, params: Tensor, rows: Rows) -> Tensor:
        """Outputs [n, *places, K] of the model with the parameters of a vector [d]."""
        cost = self.model.footprint
        batch = min(max(min(EVALUATED_AT_ONCE // cost.activations, WORK_AT_ONCE // cost.operations), 32), 2048)

        def part(first: int) -> Tensor:
            own = slice(first, first + batch)
            return self._forward(params, rows.x[own] if rows.index is None else rows.x[rows.index[own]])

        return torch.cat(spread(part, range(0, len(rows.targets), batch)))

    def _forward(self, params: Tensor, x: Tensor) -> Tensor:
        model, _ = self.functional.bind(self.model.layout.named(params).values())
        with torch.no_grad():
            found: Tensor = model(x)
        return found

    def _tensor(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else torch.int64)
