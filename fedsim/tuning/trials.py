"""One trial: the runs of a choice of options, one seed after the other.

Its numbers are reported as they come. At an evaluation of seed k they are the mean over the seeds up to k, each at this
evaluation: so trials are compared at equal evaluations of equal seeds, and their differences have nothing of the seeds
in them. What loses on the first seed never has the others.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.blame import mistake
from fedsim.core.documents import parse_toml
from fedsim.core.errors import FedsimError, one_line
from fedsim.core.files import write_whole
from fedsim.running.result import Round
from fedsim.running.resume import resume
from fedsim.running.stored import TRACEBACK, StoredRun
from fedsim.running.study import Trial
from fedsim.tuning.plan import Plan
from fedsim.tuning.storage import Claim, folder_of, library

if TYPE_CHECKING:
    import optuna

PRUNED = "pruned"
"""How the reason begins of a run that was given up."""
STRIDE = 1_000_000
"""Evaluations of a run where nobody knows how many there will be."""
TOLD = "fedsim"
"""The attribute of a trial in the journal that says what its runs came to."""


@dataclass
class _Watch:
    """Hears the rows of one seed's run, reports them and ends the run where the trial is given up.

    earlier: the curves of the seeds before. place: the run's folder, whose rows may have been written before.
    """

    plan: Plan
    trial: optuna.Trial
    reported: set[int]
    earlier: Sequence[Sequence[float]]
    place: Path
    reason: str = ""
    curve: list[float] | None = None

    def __call__(self, told: Round) -> bool:
        """Report a row; whether the trial is given up."""
        if self.curve is None:
            *before, _ = StoredRun(self.place).rows()  # the last one is this
            self.curve = values_of(self.plan, before)
        fresh = values_of(self.plan, [told.row])
        self.curve += fresh
        if not fresh:
            return False
        place = len(self.curve) - 1
        self._report(place)
        if self._is_the_end(place) or not self.trial.should_prune():
            return False
        seeds = f", of {len(self.earlier) + 1} seeds" if self.earlier else ""
        self.reason = f"{PRUNED} after round {told.row['round']}: {self.plan.metric} {fresh[0]:.4g}{seeds}"
        return True

    def take(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """The whole curve of a run that is over, all of it reported."""
        self.curve = values_of(self.plan, rows)
        for place in range(len(self.curve)):
            self._report(place)
        return self.curve

    def _report(self, place: int) -> None:
        assert self.curve is not None
        step = len(self.earlier) * (self.plan.evaluations or STRIDE) + place
        if step in self.reported:
            return
        each = [curve[min(place, len(curve) - 1)] for curve in (*self.earlier, self.curve)]
        self.trial.report(sum(each) / len(each), step)
        self.reported.add(step)

    def _is_the_end(self, place: int) -> bool:
        """Whether nothing of the trial is left that could be saved."""
        known = self.plan.evaluations
        return len(self.earlier) == len(self.plan.seeds) - 1 and known is not None and place >= known - 1


def values_of(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The finite values of the metric in rows, in their order."""
    found = (row.get(plan.metric) for row in rows)
    return [value for value in found if value is not None and math.isfinite(value)]


@dataclass
class _Came:
    """What a trial has come to so far: see `Trial`. last: the round of the model that each seed's value is of."""

    values: list[float] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    rounds: int = 0
    seconds: float = 0.0
    reason: str = ""


def run_trial(plan: Plan, study: optuna.Study, held: Claim) -> None:
    """Run what is left of a trial and tell the search what came of it.

    KeyboardInterrupt: somebody has interrupted it, and it can go on. Whatever else goes wrong is the trial's end.
    """
    states = library().trial.TrialState
    came, curves, state = _Came(), list[list[float]](), states.COMPLETE
    reported = set(study.get_trials(deepcopy=False)[held.trial.number].intermediate_values)
    twin = _twin(study, held)
    try:
        if twin is not None:
            came = _Came(**{**twin.user_attrs[TOLD], "seconds": 0.0, "reason": f"the same as trial {twin.number}"})
        for seed in plan.seeds if twin is None else ():
            place = held.folder / f"seed-{seed}"
            watch = _Watch(plan, held.trial, reported, curves, place)
            status, reason = _ran(plan, held, seed, place, watch)
            stored = StoredRun(place)
            rows, summary = stored.rows(), stored.summary() or {}
            came.rounds += int(summary.get("rounds", 0))
            came.seconds += float(summary.get("wall", 0.0))
            curves.append(watch.take(rows))
            if status not in ("finished", "stopped") or not curves[-1]:
                state, came.reason = states.PRUNED, f"{status}: {reason or 'nothing was measured'}"
                break
            if reason.startswith(PRUNED):
                state, came.reason = states.PRUNED, reason
                break
            value, last = _value(plan, rows)
            came.values.append(value)
            came.last.append(last)
    except FedsimError as error:
        state, came.reason = states.FAIL, one_line(error)
    except Exception as error:
        trace = held.folder / TRACEBACK
        write_whole(trace, traceback.format_exc().encode())
        state, came.reason = states.FAIL, f"{mistake(error)} (see {trace})"
    held.trial.set_user_attr(TOLD, vars(came))
    study.tell(held.trial, sum(came.values) / len(came.values) if state == states.COMPLETE else None, state)


def _ran(plan: Plan, held: Claim, seed: int, place: Path, watch: _Watch) -> tuple[str, str]:
    """Status and reason of a seed's run, which is begun, gone on with, or has ended before."""
    stored = StoredRun(place)
    ended = stored.ended()
    if ended is not None:
        return ended, str((stored.summary() or {}).get("reason", ""))
    made = plan.experiment(held.options).with_seed(seed)
    result = resume(place, made, callbacks=[watch], anew=True)
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return result.status, result.reason


def _value(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """What a run came to, and after which round: the last value, or the best where that model is kept."""
    known = [(row[plan.metric], row["round"]) for row in rows if values_of(plan, [row])]
    if not plan.keeps_best:
        value, last = known[-1]
    else:
        value, last = (max if plan.higher else min)(known, key=lambda pair: pair[0])
    return float(value), int(last)


def _twin(study: optuna.Study, held: Claim) -> optuna.trial.FrozenTrial | None:
    """An earlier complete trial of the same options, whose runs would be the same to the bit."""
    complete = study.get_trials(deepcopy=False, states=(library().trial.TrialState.COMPLETE,))
    return next((trial for trial in complete if trial.params == held.options), None)


def told(plan: Plan, folder: Path, study: optuna.Study) -> list[Trial]:
    """The trials of a search as study.json has them."""
    return [
        _told(plan, folder, frozen) for frozen in study.get_trials(deepcopy=False) if frozen.state.name != "WAITING"
    ]


def _told(plan: Plan, folder: Path, frozen: optuna.trial.FrozenTrial) -> Trial:
    came = _Came(**frozen.user_attrs.get(TOLD, {}))
    states: Mapping[str, Any] = {"COMPLETE": "complete", "RUNNING": "running", "FAIL": "failed"}
    pruned = "pruned" if came.reason.startswith(PRUNED) else "failed"
    return Trial(
        number=frozen.number,
        options={dimension.option: plain(frozen.params.get(dimension.option)) for dimension in plan.space},
        state=states.get(frozen.state.name, pruned),
        value=frozen.value if frozen.state.name == "COMPLETE" else None,
        values=tuple(came.values),
        rounds=came.rounds,
        seconds=came.seconds,
        folder=folder_of(folder, frozen.number),
        reason=came.reason,
    )


def plain(value: Any) -> Any:
    """A value that is tried; of a choice, which stands as a text of TOML, what it means."""
    if not isinstance(value, str):
        return value
    try:
        (found,) = parse_toml(f"value = {value}").values()
    except ValueError:  # a bare word
        return value
    return found
