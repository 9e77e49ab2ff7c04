"""The clients' own models: whose are judged, what a run says of them, and what it leaves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

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
from fedsim.problems.dealt import label_distances
from fedsim.problems.supervised import Supervised
from fedsim.running.promises import asked
from fedsim.server.strategy import ServerState, Strategy


@dataclass(frozen=True)
class Whose:
    """Whose models are judged. everybodys: one for all. own: each client's."""

    everybodys: bool
    own: bool

    @classmethod
    def of(cls, problem: Looped, strategy: Strategy, client: Client, evaluation: Evaluation) -> Whose:
        """Those that there are."""
        if not isinstance(problem, Supervised):
            return cls(everybodys=True, own=False)
        everybodys = problem.model.private is None and strategy.for_all
        return cls(everybodys, not everybodys or client.own_models or evaluation.finetune is not None)

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
        return found


EVERYBODYS = Whose(everybodys=True, own=False)


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


def _tuning(finetune: Finetune, problem: Supervised) -> Tuning:
    training, moves = tuning_of(finetune), tuned_leaves(finetune, problem)

    def tune(cohort: Cohort, models: Tensor) -> Tensor:
        with cohort.apart("finetune"):
            return training.descend(cohort, models, moves=moves).params

    return Tuning(tune, training.local_steps(problem.sizes_on_device))


def own_models(
    engine: Engine, problem: Supervised, strategy: Strategy, state: ServerState, finetune: Finetune | None
) -> Owned:
    """The models of the clients' own at a state of the server."""
    assert isinstance(engine, Remembers)
    everybody = torch.arange(problem.num_clients)
    order = Order("personal", everybody, {"params": state.params}, {}, state.round)
    if engine.executor.client.own_models:  # which may look at whatever it is sent
        order, _ = asked(strategy, strategy.ask(state, everybody), state, everybody)
    tuning = None if finetune is None else _tuning(finetune, problem)
    return Owned(engine.executor, order, engine.memories(), tuning)


@dataclass(frozen=True, eq=False)
class OwnModels:
    """The clients' models at the end of a run. params: what is shared, [d]; None: no model is for all.

    participation: how often each client has taken part. evaluation: how they are judged.
    """

    problem: Supervised
    owned: Owned
    params: Tensor | None
    participation: Sequence[int]
    evaluation: Evaluation

    def client_measures(self) -> dict[str, Tensor]:
        """What each client's model comes to on examples of its own, and that for all; see `Judged.each_client`.

        Beside it what a client has and has done: how many examples it trains on, how far their labels are from
        everybody's (see `label_distances`), how often it has taken part, and what its algorithm tells of it.
        """
        judged, metrics = self.problem.judged, self.evaluation.measures
        *_, (rows, count) = judged.by_clients(self.evaluation.on).values()
        own = judged.each_client(self.owned.outputs(rows, count), rows, count, metrics)
        found = {"examples": count, "train_examples": self.problem.sizes}
        if (distances := label_distances(self.problem.dataset, self.problem.partition)) is not None:
            found["label_distance"] = torch.from_numpy(distances)
        found["participation"] = torch.tensor(self.participation)
        if self.params is not None:
            found |= judged.each_client(self.problem.outputs(self.params, rows), rows, count, metrics)
        found |= {f"personal_{name}": values for name, values in own.items() if name != "examples"}
        return self.owned.told() | found

    def tensors(self) -> dict[str, Tensor]:
        """What each client has of its own, by the parameters' names, [N, *shape] each: of a model all, or its part."""
        private, client = self.problem.model.private, self.owned.executor.client
        clients = torch.arange(self.problem.num_clients, device=self.problem.device)
        if client.own_models:
            found = self.owned.each(clients, 1, lambda _, models: models.flat())
            layout, rows = self.problem.model.layout, torch.cat([rows for _, rows in found])
            place = torch.cat([part for part, _ in found])
            rows = rows[torch.argsort(place)]
        elif private is not None:
            layout, rows = private.own, self.owned.store.look(PRIVATE, clients)[0]
        else:
            return {}
        return dict(zip(layout.names, layout.stack(rows).leaves, strict=True))

    def module(self, client: int) -> nn.Module:
        """The model of a client, in evaluation mode."""
        one = torch.tensor([client], device=self.problem.device)
        return self.problem.whole_module(self.owned.models(one).flat()[0])


def personal_measures(
    engine: Engine, problem: Supervised, strategy: Strategy, state: ServerState, evaluation: Evaluation, whose: Whose
) -> dict[str, float]:
    """What the clients' models come to on examples of their own; see `Judged.personal_scores`.

    Where there is one for all, what that comes to on the same examples, too. personal_untrained: how many of the
    clients that are judged have not taken part yet, and have what they would begin with.
    """
    owned = own_models(engine, problem, strategy, state, evaluation.finetune)
    found, judged = dict[str, float](), torch.zeros(problem.num_clients, dtype=torch.bool)
    metrics, scores = evaluation.measures, problem.judged.personal_scores
    if whose.everybodys:
        for name, (rows, count) in problem.judged.by_clients(evaluation.on, "client").items():
            found |= scores(name, problem.outputs(state.params, rows), rows, count, metrics)
    for name, (rows, count) in problem.judged.by_clients(evaluation.on, "personal").items():
        found |= scores(name, owned.outputs(rows, count), rows, count, metrics)
        judged |= (count > 0).cpu()
    untrained = torch.tensor(engine.trace.participation) == 0
    return found | {"personal_untrained": int((untrained & judged).sum())}
