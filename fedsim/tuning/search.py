"""A search from its beginning, or from where it was left, to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.configuration.tables import Experiment, experiment, hold_findable, load
from fedsim.core.documents import read_toml
from fedsim.core.errors import FedsimError, InputError, warn
from fedsim.core.files import path_of, write_whole
from fedsim.core.folders import held
from fedsim.core.measures import is_measure
from fedsim.core.near import name_one
from fedsim.core.terminal import tell
from fedsim.parallel.cores import cores
from fedsim.parallel.workers import Failed, Workers, take_cores
from fedsim.running.endings import ENDED
from fedsim.running.folder import RunFolder
from fedsim.running.many import hold_few
from fedsim.running.resume import differences, is_free, resume
from fedsim.running.stored import StoredRun
from fedsim.running.study import Study, Trial, read_study, write_study
from fedsim.running.sweep import Point, run_points
from fedsim.tuning.plan import Plan, plan
from fedsim.tuning.space import Dimension, parse_space
from fedsim.tuning.storage import (
    LOCK,
    PRUNERS,
    SAMPLERS,
    claim,
    folder_of,
    grid,
    is_taken,
    library,
    opened,
    pruner_of,
)
from fedsim.tuning.trials import TOLD, run_trial, told

if TYPE_CHECKING:
    import optuna

SEARCHED, BEST = "experiment.toml", "best.toml"
"""The experiment that trials are, but for what is searched; the one with the best options."""
JUDGED = "judged"
"""The folder of the runs that are judged on the test set."""
SAID = ("test_", "personal_", "newcomer_")
"""How the measures begin that are told of them."""
TRIALS = 20
Heard = Callable[[Trial, Study], object]
"""Called with each trial that has come to its end, and with the search as it then is."""


def tune(
    given: Experiment | Path | str,
    space: Mapping[str, str | Sequence[Any]] | Sequence[str],
    *,
    metric: str | None = None,
    trials: int | None = None,
    seeds: Sequence[int] = (),
    sampler: str = "tpe",
    pruner: str = "median",
    draws: int = 0,
    workers: int = 1,
    out: Path | str | None = None,
    on_test: bool = False,
    on_trial: Heard | None = None,
    overrides: Sequence[str] = (),
    data_dir: Path | str | None = None,
) -> Study:
    """Search the options of an experiment: the trials, the best of them, and what it comes to on the test set.

    given: an experiment, or the file of one, with overrides as after `--set`. space: by `table.option`, which values
    there are, as `log:0.001..1`, `int:1..10`, `0.5..0.9` or `0,0.9`; in Python choices may be a list. metric: what is
    looked at, by default the accuracy (or else the loss) on examples set aside, or the value of a function; where the
    partition sets none aside, a fifth of each client's is. trials: in all, by default 20, of a grid as many as it has.
    seeds: of each trial, by default the experiment's. sampler: `tpe`, `random` or `grid`; pruner: `median`,
    `hyperband` or `none`, who gives trials up; draws: the sampler's seed. workers: processes that work on trials side
    by side; by default this one does. out: the folder, by default the next `runs/tune-<n>`; with the same one a search
    goes on where it was left, with more trials if more are asked for. on_test: choose by the test set all the same.
    on_trial: see `Heard`.

    In the end the best options are run once with all the training data and judged on the test set, which nobody has
    looked at before. A trial that fails or diverges is one with that state. KeyboardInterrupt: the search was
    interrupted; study.json says what there is. InputError: something cannot be used, or another search is there.
    """
    library()
    hold_few("trials", trials, trials or TRIALS)
    for option, value, known in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if value not in known:
            raise InputError(option, value, name_one(value, known))
    for option, count in (("trials", trials), ("workers", workers)):
        if count is not None and count < 1:
            raise InputError(option, count, "at least one is needed")
    dimensions = parse_space(space)
    most = _most(dimensions, sampler, draws, trials)
    made = load(given, overrides=overrides, data_dir=data_dir) if isinstance(given, Path | str) else given
    planned = plan(
        made,
        dimensions,
        metric=metric,
        seeds=tuple(seeds) or (made.seed,),
        sampler=sampler,
        pruner=pruner,
        draws=draws,
        on_test=on_test,
    )
    if len(set(planned.seeds)) < len(planned.seeds):
        raise InputError("seeds", list(seeds), "give different whole numbers")
    if workers > 1:
        hold_findable(planned.tables, "a search runs in several: move it to a file's top, or take workers = 1")
    group = RunFolder.create(None, "tune") if out is None else RunFolder(path_of(out, "out"))
    folder = group.path
    _begin(planned, folder)
    for note in planned.notes:
        tell(f"fedsim: {note}", "stderr")
    study = _joined(planned, folder)
    try:
        for number in _work(planned, folder, study, most, workers):
            found = _written(planned, folder, study)
            if on_trial is not None:
                on_trial(found.trials[number], found)
    finally:
        found = _written(planned, folder, study, importance=True)
    if found.best is None or planned.last is None or found.test is not None:
        return found
    if any(trial.state == "running" for trial in found.trials):
        tell("fedsim: other processes are still at work; the last of them judges the best options", "stderr")
        return found
    return _judged(planned, folder, study, found, workers)


def _most(space: Sequence[Dimension], sampler: str, draws: int, trials: int | None) -> int:
    """How many trials there are to be."""
    if sampler != "grid":
        return TRIALS if trials is None else trials
    every = len(grid(space, draws))
    return every if trials is None else min(trials, every)


def _begin(planned: Plan, folder: Path) -> None:
    """Make the folder and write down what is searched. InputError: another search is there, or something else is."""
    RunFolder.check(folder, "tune", force=True)
    if read_study(folder) is None and folder.is_dir() and any(entry.name != LOCK for entry in folder.iterdir()):
        raise InputError("out", str(folder), "there is something else in this folder; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / LOCK):
        before = read_study(folder)
        if before is None:
            import tomli_w

            write_whole(folder / SEARCHED, tomli_w.dumps(planned.tables).encode())
            write_study(_described(planned, ()), folder)
        else:
            _hold_same(planned, folder, before)


def _hold_same(planned: Plan, folder: Path, before: Study) -> None:
    """Refuse to go on with another search."""
    asked = _described(planned, ())
    for option in ("metric", "space", "seeds", "sampler", "pruner", "draws"):
        was, now = getattr(before, option), getattr(asked, option)
        if was != now:
            raise InputError(option, _shown(now), f"the search in {folder} has {_shown(was)}; leave it as it was")
    recorded = experiment(data_dir=planned.data_dir, **read_toml(folder / SEARCHED)).resolved()
    searched = experiment(data_dir=planned.data_dir, **planned.tables).resolved()
    for option, now, was in differences(searched, recorded):
        if not is_free(option):
            raise InputError(option, now, f"the search in {folder} has {was!r}; choose another --out")


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={text}" for name, text in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _described(planned: Plan, trials: Sequence[Trial], **more: Any) -> Study:
    """The search as study.json has it."""
    return Study(
        metric=planned.metric,
        higher_is_better=planned.higher,
        space={dimension.option: dimension.text for dimension in planned.space},
        seeds=planned.seeds,
        sampler=planned.sampler,
        pruner=planned.pruner,
        trials=tuple(trials),
        draws=planned.draws,
        **more,
    )


def _written(planned: Plan, folder: Path, study: optuna.Study, *, importance: bool = False) -> Study:
    """Write study.json as the journal is now, and best.toml, and give the search."""
    with held(folder / LOCK):
        found = _described(planned, told(planned, folder, study))
        ranked = found.ranked
        shares = _importance(planned, study) if importance and len(ranked) > 1 else None
        best = ranked[0].number if ranked else None
        before = read_study(folder)
        test = before.test if before is not None and before.best == best else None
        found = replace(found, best=best, importance=shares, test=test, folder=folder)
        write_study(found, folder)
        if best is not None:
            _write_best(planned, folder, study, ranked[0])
    return found


def _write_best(planned: Plan, folder: Path, study: optuna.Study, best: Trial) -> None:
    """Write the experiment with the best options as a file that runs as it is."""
    import tomli_w

    said = f"# trial {best.number} of a search: {planned.metric} {best.value:.6g}, mean of {len(best.values)} seeds\n"
    made = _best(planned, study, best.number)
    write_whole(folder / BEST, (said + tomli_w.dumps(made.resolved())).encode())


def _best(planned: Plan, study: optuna.Study, number: int) -> Experiment:
    """The experiment with the options of a trial, of as many rounds as the models had that it is chosen by."""
    frozen = study.get_trials(deepcopy=False)[number]
    made = planned.experiment(frozen.params, last=planned.last is not None)
    if planned.last is None or not planned.shortens:
        return made
    last = frozen.user_attrs[TOLD]["last"]
    return replace(made, rounds=max(1, round(sum(last) / len(last))))


def _importance(planned: Plan, study: optuna.Study) -> dict[str, float] | None:
    """What share of the differences between complete trials each option has; None: they do not differ."""
    importance = library().importance
    try:
        found = importance.get_param_importances(study, evaluator=importance.FanovaImportanceEvaluator(seed=0))
    except (RuntimeError, ValueError):  # of equal values nothing can be said
        return None
    return {dimension.option: float(found.get(dimension.option, 0.0)) for dimension in planned.space}


def _joined(planned: Plan, folder: Path) -> optuna.Study:
    """The search in its folder, with who gives trials up."""
    study = opened(folder, higher=planned.higher)
    study.pruner = pruner_of(planned.pruner, planned.evaluations, len(planned.seeds))
    return study


def _work(planned: Plan, folder: Path, study: optuna.Study, most: int, workers: int) -> Iterator[int]:
    """Have the trials run that are left of so many: their numbers, as they end."""
    if workers == 1:
        while (number := _one((planned, folder, study), most)) is not None:
            yield number
        return
    ended = sum(frozen.state.is_finished() for frozen in study.get_trials(deepcopy=False))
    each = max(cores() // workers, 1)
    with (
        Workers(min(workers, max(most - ended, 1)), _load, planned, folder, each) as pool,
        closing(pool.stream(_one, [most] * max(most - ended, 0))) as outcomes,
    ):
        for _, outcome in outcomes:
            if isinstance(outcome, Failed):
                yield from _lost(folder, study, outcome.reason)
            elif outcome is not None:
                yield outcome


def _load(planned: Plan, folder: Path, each: int) -> tuple[Plan, Path, optuna.Study]:
    """What a process of a search has, given so many cores."""
    take_cores(each)
    return planned, folder, _joined(planned, folder)


def _one(joined: tuple[Plan, Path, optuna.Study], most: int) -> int | None:
    """Run a trial that nobody works on: its number; None: there is none."""
    planned, folder, study = joined
    taken = claim(study, folder, planned.space, planned.sampler, planned.draws, most)
    if taken is None:
        return None
    with closing(taken):
        _written(planned, folder, study)
        run_trial(planned, study, taken)
    return taken.trial.number


def _lost(folder: Path, study: optuna.Study, reason: str) -> Iterator[int]:
    """Tell the search of trials whose process has ended with them, twice."""
    states = library().trial.TrialState
    for frozen in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        if not is_taken(folder_of(folder, frozen.number)):
            study.tell(frozen.number, state=states.FAIL)
            warn(f"trial {frozen.number} {reason}: out of memory?")
            yield frozen.number


def _judged(planned: Plan, folder: Path, study: optuna.Study, found: Study, workers: int) -> Study:
    """Run the best options with all the training data, judge them on the test set, and write down what it says."""
    assert found.best is not None
    best = _best(planned, study, found.best)
    evaluation = replace(best.evaluation, every=0, every_seconds=None, attacks_every=None)
    group = folder / JUDGED / folder_of(folder, found.best).name
    looked = sorted(entry.name for entry in group.parent.iterdir()) if group.parent.is_dir() else []
    before = ", ".join(name for name in looked if name != group.name)
    again = f"; it has been looked at before, for {before}" if before else ", which nothing has looked at so far"
    tell(f"fedsim: trial {found.best} has all training data now, and is judged on the test set{again}", "stderr")
    points = [Point(replace(best, evaluation=evaluation, seed=seed), group / f"seed-{seed}") for seed in planned.seeds]
    if workers > 1:
        ended = [(outcome.status, outcome.reason, outcome.summary) for outcome in run_points(points, workers=workers)]
    else:
        ended = [_run(point) for point in points]
    fault = next((f"{status}: {reason}" for status, reason, _ in ended if not ENDED.get(status)), None)
    if fault is not None:
        raise FedsimError(f"the best options, with all training data, have {fault}; nothing is said of the test set")
    summaries = [summary for _, _, summary in ended]
    names = [name for name in summaries[0] if name.startswith(SAID) and is_measure(name, evaluation.asked)]
    test = {name: tuple(float(summary[name]) for summary in summaries) for name in names}
    with held(folder / LOCK):
        found = replace(found, test=test)
        write_study(found, folder)
    return found


def _run(point: Point) -> tuple[str, str, Mapping[str, Any]]:
    """Run a point in this process, or read what it has come to before."""
    stored = StoredRun(point.folder)
    summary = stored.summary() if stored.ended() is not None else None
    if summary is not None:
        return summary["status"], str(summary.get("reason", "")), summary
    result = resume(point.folder, point.experiment, anew=True)
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return result.status, result.reason, result.summary
