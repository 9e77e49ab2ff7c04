"""What a search does: which experiment each trial is, what it is judged by, and what is run in the end.

The test set is left alone during the search: trials are judged on examples set aside, and the best options then have
all the training data and are judged on the test set once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.configuration.tables import Experiment, experiment, override
from fedsim.core.errors import InputError
from fedsim.core.measures import lower_is_better
from fedsim.core.near import name_one
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_problem
from fedsim.running.checks import check, measures
from fedsim.tuning.space import Dimension

SHARE = 0.2
"""Of each client's examples what is set aside where the experiment sets nothing aside."""
EVALUATIONS = 20
"""In a trial, where the experiment does not say how often it is judged."""
ENDS = ("test_", "client_", "personal_", "newcomer_")
"""How measures begin that are of the test set, or of what stands for it with each client."""
FOR_VALIDATION = ("validation", "validation_clients")
TRAINING = ("train_loss",)
"""Columns that are no measures of a set and can be looked at all the same."""


@dataclass(frozen=True)
class Plan:
    """A search that can be begun; picklable.

    tables: of the experiment that trials are, but for what is searched. last: those of the experiment that is run with
    the best options in the end, judged as it was; None: there is no test set, or the search has looked at it. metric:
    what is looked at. higher: whether more of it is better. notes: what is to be said of it before it begins.
    """

    tables: Mapping[str, Any]
    last: Mapping[str, Any] | None
    data_dir: Path | None
    metric: str
    higher: bool
    space: tuple[Dimension, ...]
    seeds: tuple[int, ...]
    sampler: str
    pruner: str
    draws: int
    notes: tuple[str, ...] = ()

    def experiment(self, options: Mapping[str, Any], *, last: bool = False) -> Experiment:
        """The experiment with these options, as a trial runs it, or as it is run in the end."""
        tables = self.last if last else self.tables
        assert tables is not None
        settings = [dimension.assignment(options[dimension.option]) for dimension in self.space]
        return experiment(data_dir=self.data_dir, **override(tables, settings))

    @property
    def evaluations(self) -> int | None:
        """How often a run is judged at most; None: that is not known."""
        evaluation, rounds, duration = (self.tables.get(name) for name in ("evaluation", "rounds", "duration"))
        assert isinstance(evaluation, Mapping)
        every, seconds = evaluation.get("every"), evaluation.get("every_seconds")
        if seconds is not None:
            return None if duration is None else math.floor(duration / seconds) + 1
        if rounds is None:
            return None
        return -(-rounds // every) if every else 1

    @property
    def shortens(self) -> bool:
        """Whether the model that a trial is judged by may have had fewer rounds than there are."""
        stopping = self.tables.get("stopping", {})
        return "target" in stopping or "patience" in stopping or self.keeps_best

    @property
    def keeps_best(self) -> bool:
        """Whether the model that a run leaves is the best by the metric, and not the last."""
        return bool(self.tables["evaluation"].get("keep_best") == self.metric)


def plan(
    made: Experiment,
    space: Sequence[Dimension],
    *,
    metric: str | None,
    seeds: Sequence[int],
    sampler: str,
    pruner: str,
    draws: int,
    on_test: bool,
) -> Plan:
    """Plan a search. metric: not given: the accuracy on examples set aside, or the loss, or the value of a function.

    on_test: choose by the test set all the same. InputError: something of it cannot be done, and why; each end of each
    range and each choice has then been tried on the experiment, and the problem has been built.
    """
    tables, notes = made.resolved(), list[str]()
    if not made.values_only:
        _hold_apart(made, metric, on_test)
        if not on_test and _wants_validation(metric) and not any(map(tables["partition"].get, FOR_VALIDATION)):
            tables["partition"]["validation"] = SHARE
            notes.append(
                f"partition.validation = {SHARE}: that share of each client's examples is set aside for the search"
            )
        tables["evaluation"] |= {"on": list(_sets(made, metric, on_test))}
    note = _paced(tables)
    notes += [note] if note else []
    found = experiment(data_dir=made.data_dir, **tables)
    problem = build_problem(found)
    check(found, problem)
    evaluation, measured = found.evaluation, measures(found, problem)
    own = [name for name in measured if "personal" in name.split("_")] or measured  # what an own model is there for
    chosen = metric or next((name for name in own if name.endswith("accuracy")), own[0])
    if chosen not in (*measured, *TRAINING):
        raise InputError("metric", chosen, name_one(chosen, measured))
    last = None
    if isinstance(problem, Supervised) and not on_test:
        last = _last(made)
        ending = experiment(data_dir=made.data_dir, **last)
        check(ending, build_problem(ending))
    higher = not lower_is_better(chosen, evaluation.asked)
    made_plan = Plan(
        tables, last, made.data_dir, chosen, higher, tuple(space), tuple(seeds), sampler, pruner, draws, tuple(notes)
    )
    _hold_space(made_plan)
    return made_plan


def _wants_validation(metric: str | None) -> bool:
    return metric is None or metric.startswith("validation_")


def _hold_apart(made: Experiment, metric: str | None, on_test: bool) -> None:
    """Refuse to look at the test set before the end, where nobody insists on it."""
    looked = {"metric": metric, "evaluation.keep_best": made.evaluation.keep_best}
    if made.stopping is not None and made.stopping.watches:
        looked["stopping.metric"] = made.stopping.metric
    for option, name in looked.items():
        if on_test or name is None or not name.startswith(ENDS):
            continue
        other = f"validation_{name.removeprefix('test_')}"
        remedy = f"the test set is for the end; take {other}, of what partition.validation sets aside"
        raise InputError(option, name, remedy + (", or insist with --on-test" if option == "metric" else ""))


def _sets(made: Experiment, metric: str | None, on_test: bool) -> dict[str, None]:
    """The sets that a trial is judged on: those that something looks at."""
    looked = [metric or ("test_" if on_test else "validation_"), made.evaluation.keep_best or ""]
    if made.stopping is not None and made.stopping.watches:
        looked.append(made.stopping.metric)
    of = {"validation_": "validation", "global_train_": "train"} | (dict.fromkeys(ENDS, "test") if on_test else {})
    sets = {of[begin]: None for name in looked for begin in of if name.startswith(begin)}
    return sets or {"train": None}


def _paced(tables: dict[str, Any]) -> str | None:
    """Have all trials judged at the same rounds, or times, whatever their options are; what is to be said of it."""
    evaluation, rounds, duration = tables["evaluation"], tables.get("rounds"), tables.get("duration")
    if evaluation.get("every") is not None or evaluation.get("every_seconds") is not None:
        return None
    stopping = tables.get("stopping", {})
    looks = "target" in stopping or "patience" in stopping or "keep_best" in evaluation
    if rounds is None:
        assert duration is not None
        evaluation["every_seconds"] = duration / EVALUATIONS
        return f"evaluation.every_seconds = {duration / EVALUATIONS:g}, so that trials are compared at equal times"
    attacked = evaluation.get("attacks_every")
    every = attacked or (1 if looks else max(1, rounds // EVALUATIONS))
    evaluation["every"] = every
    return None if every == 1 else f"evaluation.every = {every}, so that trials are compared at equal rounds"


def _last(made: Experiment) -> dict[str, Any]:
    """The experiment without what only the search needs: all examples are trained on, and the test set is judged."""
    tables = made.resolved()
    for option in FOR_VALIDATION:
        tables["partition"].pop(option, None)
    evaluation = tables["evaluation"]
    left = [name for name in evaluation["on"] if name != "validation"]
    evaluation["on"] = left if "test" in left else ["test", *left]
    if str(evaluation.get("keep_best", "")).startswith("validation_"):
        del evaluation["keep_best"]
    tables.pop("stopping", None)  # of what a measure has ended the best trial says how many rounds it had
    if made.stopping is not None and made.stopping.queries is not None:
        tables["stopping"] = {"queries": made.stopping.queries}
    return tables


def _hold_space(made: Plan) -> None:
    """Refuse an option or a value of the space that the experiment cannot have."""
    first = {dimension.option: dimension.ends[0] for dimension in made.space}
    for dimension in made.space:
        for value in dimension.ends:
            try:
                made.experiment(first | {dimension.option: value})
            except InputError as error:
                where = f"in --space {dimension.option}={dimension.text}"
                raise InputError(error.option, error.value, f"{error.remedy} ({where})") from error
