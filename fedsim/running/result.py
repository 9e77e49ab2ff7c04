"""What a run tells while it goes on, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import FedsimError
from fedsim.core.html import cell, html_table
from fedsim.core.measures import Asked, first
from fedsim.plots import Picture, curves, personal
from fedsim.running.history import History, Row
from fedsim.running.reporting import write_report

# Who compares runs reads no tensors, and does not wait for PyTorch.
if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedsim.problems.base import Problem
    from fedsim.running.personal import OwnModels


@dataclass(frozen=True)
class Round:
    """What a callback sees: a row of metrics, and a copy of the global parameters [d] that it is about."""

    row: Row
    params: Tensor

    def __repr__(self) -> str:
        return f"Round({', '.join(f'{name} {cell(value)}' for name, value in self.row.items())})"


Callback = Callable[[Round], object]
"""Called with every row: of each round, or of each evaluation where clients work on between rounds or time says when.

One that returns True, NumPy's too, ends the run there, with the status "stopped", for the `reason` that it has, if any.
"""


@dataclass(frozen=True)
class Result:
    """What a run leaves. status: finished, stopped (early), diverged, stalled or interrupted; reason: why.

    params: the final parameters, [d]. summary: final and best values. history: the rows. folder: the run's, or None.
    config: the experiment's tables and the versions, as config.toml has them. trace: as trace.json has it. own: what
    each client has of the model, where something of it stays with clients. asked: whether higher is better, by the
    measures of `evaluation.metrics`.
    """

    params: Tensor
    problem: Problem
    status: str
    reason: str
    summary: Mapping[str, Any]
    history: History
    folder: Path | None
    config: Mapping[str, Any]
    trace: Mapping[str, Any]
    own: OwnModels | None = None
    asked: Asked = field(default_factory=dict)

    def model(self, client: int | None = None) -> nn.Module:
        """The model with the final parameters, in evaluation mode; of a client, where something of it stays with them.

        FedsimError: the problem has none; or each client has its own, and none is named, or the run did not come to its
        end; or there is one for all, and a client is named.
        """
        from fedsim.problems.supervised import Supervised

        if not isinstance(self.problem, Supervised):
            raise FedsimError("this problem has no model; its solution is Result.params")
        for_all = self.problem.model.private is None and (self.own is None or self.own.params is not None)
        if client is None:
            if not for_all:
                raise FedsimError("each client has a model of its own; name one: model(client=0)")
            return self.problem.module(self.params)
        if self.own is None and for_all:
            raise FedsimError("one model is for all clients; name none")
        if self.own is None:
            raise FedsimError(f"what clients have of their own is kept where a run ends, and this one is {self.status}")
        return self.own.module(client)

    def plot(self) -> Picture:
        """What it measured against the round. FedsimError: no number was measured."""
        return Picture(lambda place: curves(self.history.rows, place, self.asked))

    def plot_clients(self) -> Picture:
        """The clients' own models: against the global one, and by what each client has; see `plots.personal`.

        FedsimError: clients have none, or are not judged by them, or the run did not come to its end.
        """
        from fedsim.running.clients import columns_of

        if self.own is None:
            raise FedsimError(
                f"clients have no models of their own here, or the run has not ended: it is {self.status}"
            )
        if not self.own.evaluation.clients:
            raise FedsimError("evaluation.clients = false says that nobody is judged")
        columns = columns_of(self.own.client_measures(), self.problem.names)
        return Picture(lambda place: personal(columns, place))

    def report(self, path: Path | str) -> None:
        """Write all that it says of itself as one HTML page, as `fedsim report` does."""
        write_report(self, path)

    def __repr__(self) -> str:
        measures = [f"{name} {cell(self.summary[name])}" for name in first(self.asked) if name in self.summary]
        place = [] if self.folder is None else [str(self.folder)]
        rounds = f"round {self.summary['rounds']}"
        return f"Result({', '.join([self.status, rounds, *measures, *place])})"

    def _repr_html_(self) -> str:
        said = {"status": f"{self.status}: {self.reason}" if self.reason else self.status}
        said["rounds"] = str(self.summary["rounds"])
        for name in first(self.asked):
            if name in self.summary:
                best = cell(self.summary[f"best_{name}"])
                where = self.summary[f"best_{name}_round"]
                said[name] = f"{cell(self.summary[name])} (best {best}, round {where})"
        if self.folder is not None:
            said["run folder"] = str(self.folder)
        return html_table((), said.items())
