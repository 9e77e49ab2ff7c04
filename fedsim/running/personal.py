"""The clients' own models: whose are judged, what a run says of them, and what it leaves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from fedsim.client.training import LocalTraining
from fedsim.configuration.evaluation import Evaluation, Finetune
from fedsim.core.errors import InputError
from fedsim.engine.base import Engine
from fedsim.engine.client import Client
from fedsim.engine.cohort import PRIVATE, Cohort
from fedsim.engine.personal import Owned, Remembers, Tuning
from fedsim.exchange.messages import Order
from fedsim.nets.selection import selected, written
from fedsim.problems.base import Looped, Problem
from fedsim.problems.dealt import label_distances, owners_names
from fedsim.problems.judged import Judged, Rows
from fedsim.problems.supervised import Supervised
from fedsim.running.promises import asked
from fedsim.server.strategy import ServerState, Strategy


@dataclass(frozen=True)
class Whose:
    """Whose models are judged. everybodys: one for all. own: each client's. newcomers: of who never takes part, too."""

    everybodys: bool
    own: bool
    newcomers: bool = False

    @classmethod
    def of(cls, problem: Looped, strategy: Strategy, client: Client, evaluation: Evaluation) -> Whose:
        """Those that there are."""
        if not isinstance(problem, Supervised):
            return cls(everybodys=True, own=False)
        everybodys = problem.model.private is None and strategy.for_all
        own = not everybodys or client.own_models or evaluation.finetune is not None
        return cls(everybodys, own, problem.newcomers is not None)

    def clients(self, problem: Looped, evaluation: Evaluation) -> bool:
        """Whether clients are judged: their own models always are, unless nobody is to be."""
        return bool(evaluation.clients) if self.own else problem.evaluates_clients(evaluation.clients)

    def measures(self, problem: Problem, evaluation: Evaluation) -> list[str]:
        """The names of what is measured, but for counts. InputError: a measure is none of what there is here."""
        on, metrics = evaluation.on, evaluation.measures
        found: list[str] = []
        if self.everybodys:
            found += problem.measures(False if self.own else evaluation.clients, on, metrics)
        if self.own and self.clients(problem, evaluation):
            assert isinstance(problem, Supervised)
            found += problem.judged.of_owners("client", on, metrics) if self.everybodys else []
            found += problem.judged.of_owners("personal", on, metrics)
        if self.newcomers:
            assert isinstance(problem, Supervised)
            assert problem.newcomers is not None
            found += problem.newcomers.of_owners("newcomer", on, metrics)
        return found


EVERYBODYS = Whose(everybodys=True, own=False)


def hold_newcomers(newcomers: Judged, evaluation: Evaluation) -> None:
    """Refuse clients who come to nothing: they never take part, and are not judged or only by what they train on."""
    option, value = "partition.newcomers", f"{newcomers.partition.clients} clients"
    if evaluation.clients is False:
        remedy = "they are there to be judged, and evaluation.clients = false says that no client is; remove one"
        raise InputError(option, value, remedy)
    if not newcomers.has_own(evaluation.on):
        remedy = "each is judged on examples of its own that no model is trained on, and they have none; hold some out"
        raise InputError(option, value, f"{remedy} (partition.holdout = 0.2), or give test_clients in Python")


def hold_judged(problem: Supervised, wanted: bool | str, on: Collection[str]) -> None:
    """Refuse to judge models of the clients' own by what they were trained on. wanted: `evaluation.clients`."""
    apart = problem.partition.validation_clients
    if "validation" in on and apart is not None:
        remedy = "clients have models of their own, and who is set aside has none; take partition.validation"
        raise InputError("partition.validation_clients", f"{len(apart)} clients", remedy)
    if wanted and not problem.judged.has_own(on):
        remedy = "each client's model is judged on examples of its own that it is not trained on; hold some out (0.2)"
        raise InputError(
            "partition.holdout", 0.0, f"{remedy}, give test_clients in Python, or set evaluation.clients = false"
        )


def tuning_of(finetune: Finetune) -> LocalTraining:
    """How models are trained before they are judged."""
    return LocalTraining(epochs=finetune.epochs, steps=finetune.steps, lr=finetune.lr, batch_size=finetune.batch_size)


def tuned_leaves(finetune: Finetune, problem: Supervised) -> list[bool] | None:
    """Which leaves of the model are trained so; None: all. InputError: there is none, or a name is of none."""
    if finetune.trains == "all":
        return None
    option, model = "evaluation.finetune.trains", problem.model
    found = selected(finetune.trains, model.module, model.layout, option)
    if not found:
        remedy = "nothing would be trained; name something, or leave finetune out"
        raise InputError(option, written(finetune.trains), remedy)
    return [name in found for name in model.layout.names]


def tuning_on(problem: Problem, finetune: Finetune | None) -> Tuning | None:
    """The same for the clients of a problem; None: they are judged as they are."""
    if finetune is None or not isinstance(problem, Supervised):
        return None
    training, moves = tuning_of(finetune), tuned_leaves(finetune, problem)

    def tune(cohort: Cohort, models: Tensor) -> Tensor:
        with cohort.apart("finetune"):
            return training.descend(cohort, models, moves=moves).params

    return Tuning(tune, training.local_steps(problem.sizes_on_device))


def own_models(
    engine: Engine, problem: Supervised, strategy: Strategy, state: ServerState, tuning: Tuning | None
) -> Owned:
    """The models of the clients' own at a state of the server."""
    remembering = cast("Remembers", engine)  # asking whether it is one takes as long as judging a few models
    everybody = torch.arange(problem.num_clients)
    order = Order("personal", everybody, {"params": state.params}, {}, state.round)
    if remembering.executor.client.own_models:  # which may look at whatever it is sent
        order, _ = asked(strategy, strategy.ask(state, everybody), state, everybody)
    return Owned(remembering.executor, order, remembering.memories(), tuning)


@dataclass(frozen=True, eq=False)
class Newcomers:
    """Clients who never take part, numbered from N, and what they would use if they came now.

    Each has the model for all, or, where clients have models of their own (`owned`), what its client algorithm makes of
    what the server would send it, of what clients have before they take part, and of fine-tuning. What such an
    algorithm remembers as a model begins as the model for all, which is the better start once that has been trained
    (as in PFLlib, whose new clients fine-tune it), and where there is none as the problem does. So does what of a
    model stays with clients, which nobody could send them.
    """

    problem: Supervised
    params: Tensor
    owned: Owned | None

    @classmethod
    def of(cls, problem: Supervised, strategy: Strategy, state: ServerState, owned: Owned | None) -> Newcomers:
        """Those of a problem at a state of the server. owned: the models of those who take part, if they have some."""
        if owned is not None:
            begins = {name: state.params for name in owned.executor.client.models if strategy.for_all}
            owned = replace(owned, first=problem.num_clients, begins=begins)
        return cls(problem, state.params, owned)

    @property
    def judged(self) -> Judged:
        """What they are judged on."""
        assert self.problem.newcomers is not None
        return self.problem.newcomers

    @property
    def names(self) -> list[str] | None:
        """What they are called, where the data set names owners."""
        return owners_names(self.problem.dataset, self.judged.partition)

    def outputs(self, rows: Rows, count: Tensor) -> Tensor:
        """Outputs of each one's model for examples of its own; see `Owned.outputs`."""
        return self.problem.outputs(self.params, rows) if self.owned is None else self.owned.outputs(rows, count)

    def measures(self, evaluation: Evaluation) -> dict[str, float]:
        """What their models come to; see `Judged.personal_scores`."""
        found = dict[str, float]()
        for name, (rows, count) in self.judged.by_clients(evaluation.on, "newcomer").items():
            outputs = self.outputs(rows, count)
            found |= self.judged.personal_scores(name, outputs, rows, count, evaluation.measures)
        return found

    def each(self, evaluation: Evaluation) -> dict[str, Tensor]:
        """What each one's model comes to, [V]; see `Judged.each_client`. And what the algorithm tells of each."""
        *_, (rows, count) = self.judged.by_clients(evaluation.on).values()
        if self.owned is None:
            outputs, told = self.outputs(rows, count), dict[str, Tensor]()
        else:
            outputs, told = self.owned.outputs_and_told(rows, count)
        return told | self.judged.each_client(outputs, rows, count, evaluation.measures)


@dataclass(frozen=True, eq=False)
class OwnModels:
    """The clients' models at the end of a run. params: what is shared, [d]; None: no model is for all.

    participation: how often each client has taken part. evaluation: how they are judged. newcomers: the models of
    clients who never take part; None: there are none.
    """

    problem: Supervised
    owned: Owned
    params: Tensor | None
    participation: Sequence[int]
    evaluation: Evaluation
    newcomers: Newcomers | None = None

    def client_measures(self) -> dict[str, Tensor]:
        """What each client's model comes to on examples of its own, and that for all; see `Judged.each_client`.

        Beside it what a client has and has done: how many examples it trains on, how far their labels are from
        everybody's (see `label_distances`), how often it has taken part, and what its algorithm tells of it.
        """
        judged, metrics = self.problem.judged, self.evaluation.measures
        *_, (rows, count) = judged.by_clients(self.evaluation.on).values()
        outputs, told = self.owned.outputs_and_told(rows, count)
        own = judged.each_client(outputs, rows, count, metrics)
        found = {"examples": count, "train_examples": self.problem.sizes}
        if (distances := label_distances(self.problem.dataset, self.problem.partition)) is not None:
            found["label_distance"] = torch.from_numpy(distances)
        found["participation"] = torch.tensor(self.participation)
        if self.params is not None:
            found |= judged.each_client(self.problem.outputs(self.params, rows), rows, count, metrics)
        found |= {f"personal_{name}": values for name, values in own.items() if name != "examples"}
        return told | found

    def tensors(self) -> dict[str, Tensor]:
        """What each client has of its own, by the parameters' names, [N, *shape] each: of a model all, or its part."""
        private, client = self.problem.model.private, self.owned.executor.client
        clients = torch.arange(self.problem.num_clients, device=self.problem.device)
        if client.own_models:
            kept = replace(self.owned, tuning=None)
            found = kept.each(clients, 1, lambda _, models: models.flat())
            layout, rows = self.problem.model.layout, torch.cat([rows for _, rows in found])
            place = torch.cat([part for part, _ in found])
            rows = rows[torch.argsort(place)]
        elif private is not None:
            layout, rows = private.own, self.owned.store.look(PRIVATE, clients)[0]
        else:
            return {}
        return dict(zip(layout.names, layout.stack(rows).leaves, strict=True))

    def module(self, client: int) -> nn.Module:
        """The model by which a client is judged, in evaluation mode; newcomers are N, N + 1 and so on."""
        new, owned = self.newcomers, self.owned
        if new is not None and new.owned is not None and client >= self.problem.num_clients:
            owned = new.owned
        return self.problem.whole_module(owned.models(torch.tensor([client], device=self.problem.device)).flat()[0])


def personal_measures(
    engine: Engine,
    problem: Supervised,
    strategy: Strategy,
    state: ServerState,
    evaluation: Evaluation,
    whose: Whose,
    tuning: Tuning | None,
) -> dict[str, float]:
    """What models of clients' own come to on examples of theirs, and of newcomers; see `Judged.personal_scores`.

    personal_untrained: how many of the clients that are judged have not taken part yet, and have what they would begin
    with.
    """
    owned = own_models(engine, problem, strategy, state, tuning) if whose.own else None
    found = dict[str, float]()
    if owned is not None:
        judged, untrained = problem.judged, torch.tensor(engine.trace.participation) == 0
        known = torch.zeros_like(untrained)
        for name, (rows, count) in judged.by_clients(evaluation.on, "personal").items():
            found |= judged.personal_scores(name, owned.outputs(rows, count), rows, count, evaluation.measures)
            known |= (count > 0).cpu()
        found["personal_untrained"] = int((untrained & known).sum())
    if whose.newcomers:
        found |= Newcomers.of(problem, strategy, state, owned).measures(evaluation)
    return found
