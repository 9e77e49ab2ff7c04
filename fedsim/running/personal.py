"""The clients' own models: what a run says of them, and what it leaves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.engine.base import Engine
from fedsim.engine.cohort import PRIVATE
from fedsim.engine.executor import Executor
from fedsim.engine.personal import Remembers, personal_outputs
from fedsim.problems.base import Looped
from fedsim.problems.measures import Measure
from fedsim.problems.supervised import Supervised


def has_own_models(problem: Looped) -> bool:
    """Whether something of the model stays with each client, so that no model is for all."""
    return isinstance(problem, Supervised) and problem.model.private is not None


def hold_judged(problem: Supervised, wanted: bool | str, on: Collection[str]) -> None:
    """Refuse to judge models of the clients' own by what they were trained on. wanted: `evaluation.clients`."""
    apart = problem.partition.validation_clients
    if "validation" in on and apart is not None:
        remedy = "clients have models of their own, and who is set aside has none; take partition.validation"
        raise InputError("partition.validation_clients", f"{len(apart)} clients", remedy)
    if problem.evaluates_clients(wanted) and not problem.judged.has_own(on):
        remedy = "each client's model is judged on examples of its own that it is not trained on; hold some out (0.2)"
        raise InputError(
            "partition.holdout", 0.0, f"{remedy}, give test_clients in Python, or set evaluation.clients = false"
        )


def remembered(engine: Engine, problem: Supervised) -> tuple[Tensor, Tensor]:
    """What each client has of its own, [N, p], and who of them has taken part, bool [N]."""
    assert isinstance(engine, Remembers)
    return engine.remembered(PRIVATE, torch.arange(problem.num_clients, device=problem.device))


@dataclass(frozen=True, eq=False)
class OwnModels:
    """The clients' models at the end of a run.

    params: what is shared, [d]. rows: what each client has of its own, [N, p].
    """

    problem: Supervised
    executor: Executor
    params: Tensor
    rows: Tensor

    @classmethod
    def of(cls, engine: Engine, problem: Supervised, params: Tensor) -> OwnModels:
        """Those that an engine's clients have."""
        assert isinstance(engine, Remembers)
        return cls(problem, engine.executor, params, remembered(engine, problem)[0])

    def client_measures(self, metrics: Sequence[Measure], on: Collection[str]) -> dict[str, Tensor]:
        """What each client's model comes to on examples of its own; see `Supervised.client_measures`."""
        *_, own = self.problem.judged.by_clients(on).values()
        found = personal_outputs(self.executor, self.params, self.rows, *own)
        return self.problem.judged.each_client(found, *own, metrics)

    def tensors(self) -> dict[str, Tensor]:
        """What the clients have of their own, by the parameters' names, [N, *shape] each."""
        private = self.problem.model.private
        assert private is not None
        return dict(zip(private.own.names, private.own.stack(self.rows).leaves, strict=True))


def personal_measures(
    engine: Engine, problem: Supervised, params: Tensor, on: Collection[str], metrics: Sequence[Measure]
) -> dict[str, float]:
    """What the clients' models come to on examples of their own, of these sets; see `Judged.personal_scores`.

    personal_untrained: how many of the clients that are judged have not taken part yet, and have what they would begin
    with.
    """
    assert isinstance(engine, Remembers)
    own, known = remembered(engine, problem)
    found, judged = dict[str, float](), torch.zeros_like(known)
    for name, (rows, count) in problem.judged.by_clients(on, "personal").items():
        outputs = personal_outputs(engine.executor, params, own, rows, count)
        found |= problem.judged.personal_scores(name, outputs, rows, count, metrics)
        judged |= count > 0
    return found | {"personal_untrained": int((~known & judged).sum())}
