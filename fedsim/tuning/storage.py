"""Where a search is kept, and who proposes and gives up: Optuna's parts, each made as this search needs it.

The journal is a file in the search's folder that several processes append to. A proposal depends on the search's seed,
the number of the trial and what has come of those before, not on which process makes it or when that began: so a search
that is gone on with proposes what it would have proposed without the interruption.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.errors import InputError
from fedsim.core.folders import held, is_locked, lock
from fedsim.core.streams import Streams
from fedsim.tuning.space import Dimension

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

JOURNAL, LOCK, TRIAL_LOCK = "journal.log", "search.lock", "trial.lock"
NAME = "fedsim"
"""What the search is called in its journal; Hyperband's brackets follow from it."""
SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "hyperband", "none")
COMPLETE = 3
"""Trials that are complete at least before the median gives one up."""
FIFTH = 5
"""The median gives nothing up in the first fifth of a run."""


def library() -> Any:
    """Optuna, which does not say each trial: fedsim does. InputError: it is not installed."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise InputError("tune", "optuna", 'is not installed: pip install "fedsim-lab[tune]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class _Lock:
    """The lock of a journal, which dies with its holder; and half a line, left by one that was killed, is taken away.

    Optuna's own locks are files that stay when their holder is killed, and half a line makes all that is written behind
    it unreadable.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._held = path, held(path.with_suffix(".lock"))

    def acquire(self) -> bool:
        self._held = held(self._path.with_suffix(".lock"))
        self._held.__enter__()
        _mend(self._path)
        return True

    def release(self) -> None:
        self._held.__exit__(None, None, None)


def _mend(path: Path) -> None:
    """Cut a file off after its last line end."""
    with open(path, "r+b") as file:
        if file.seek(0, 2) and file.seek(-1, 2) >= 0 and file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def opened(folder: Path, *, higher: bool) -> optuna.Study:
    """The search in a folder, which is begun if there is none. higher: whether more is better.

    InputError: its journal cannot be read.
    """
    made, path = library(), folder / JOURNAL
    with held(folder / LOCK):
        backend = made.storages.journal.JournalFileBackend(str(path), lock_obj=_Lock(path))
        direction = "maximize" if higher else "minimize"
        try:
            storage = made.storages.JournalStorage(backend)
            found: optuna.Study = made.create_study(
                storage=storage, study_name=NAME, direction=direction, load_if_exists=True
            )
        except ValueError as error:  # of which those of JSON are some
            raise InputError("out", str(path), "is not as a search has written it; choose another --out") from error
    return found


def sampler_of(kind: str, draws: int, number: int, space: Sequence[Dimension]) -> BaseSampler:
    """Who proposes trial `number`. draws: the search's seed.

    TPE begins with 3 + 2 trials a dimension, 10 at most, at random.
    """
    samplers = library().samplers
    seed = Streams(draws).derive("tune", turn=number) % 2**32
    made: BaseSampler
    if kind == "tpe":
        made = samplers.TPESampler(n_startup_trials=min(10, 3 + 2 * len(space)), seed=seed)
    else:
        made = samplers.RandomSampler(seed=seed)
    return made


def pruner_of(kind: str, evaluations: int | None, seeds: int) -> BasePruner:
    """Who gives trials up. evaluations: of a run, None where that is not known; seeds: how many runs a trial has.

    median: a trial whose best so far is worse than the median of the complete ones at the same evaluation, once there
    are `COMPLETE` of these. hyperband: successive halving by thirds, in brackets that begin later and later.
    """
    pruners = library().pruners
    made: BasePruner
    if kind == "median":
        warm = 0 if evaluations is None else evaluations // FIFTH
        made = pruners.MedianPruner(n_startup_trials=COMPLETE, n_warmup_steps=warm)
    elif kind == "hyperband":
        most = "auto" if evaluations is None else evaluations * seeds
        made = pruners.HyperbandPruner(min_resource=1, max_resource=most)
    else:
        made = pruners.NopPruner()
    return made


def grid(space: Sequence[Dimension], draws: int) -> list[dict[str, Any]]:
    """All combinations, in an order that is drawn. InputError: a range has too many values to try them all."""
    values = []
    for dimension in space:
        if dimension.values is None:
            raise InputError(
                "sampler", "grid", f"{dimension.option} is a range; name its values: {dimension.option}=A,B,C"
            )
        values.append(dimension.values)
    names = [dimension.option for dimension in space]
    every = [dict(zip(names, combination, strict=True)) for combination in itertools.product(*values)]
    return [every[place] for place in np.random.default_rng(Streams(draws).derive("tune")).permutation(len(every))]


class Claim:
    """A trial that this process works on until it closes it: no other takes it as long as this one lives.

    options: by `table.option`, what it tries.
    """

    def __init__(self, trial: optuna.Trial, folder: Path, options: Mapping[str, Any]) -> None:
        self.trial, self.folder, self.options = trial, folder, options
        self._file = open(folder / TRIAL_LOCK, "ab", buffering=0)  # noqa: SIM115
        lock(self._file)

    def close(self) -> None:
        """Let others have it."""
        self._file.close()


def claim(
    study: optuna.Study, folder: Path, space: Sequence[Dimension], sampler: str, draws: int, trials: int
) -> Claim | None:
    """A trial that nobody works on, be it one that was left, or the next of at most so many; None: there is none."""
    made = library()
    with held(folder / LOCK):
        known = study.get_trials(deepcopy=False)
        for frozen in known:
            if frozen.state == made.trial.TrialState.RUNNING and not is_taken(folder_of(folder, frozen.number)):
                study.sampler = sampler_of(sampler, draws, frozen.number, space)
                left = made.trial.Trial(study, frozen._trial_id)
                return _claimed(left, folder, space)
        number = sum(frozen.state != made.trial.TrialState.WAITING for frozen in known)
        if number >= trials:
            return None
        study.sampler = sampler_of(sampler, draws, number, space)
        if sampler == "grid":
            study.enqueue_trial(grid(space, draws)[number], skip_if_exists=True)
        return _claimed(study.ask(), folder, space)


def _claimed(trial: optuna.Trial, folder: Path, space: Sequence[Dimension]) -> Claim:
    own = folder_of(folder, trial.number)
    own.mkdir(exist_ok=True)
    return Claim(trial, own, {dimension.option: dimension.suggest(trial) for dimension in space})


def folder_of(folder: Path, number: int) -> Path:
    """Where a trial's runs are."""
    return folder / f"trial-{number}"


def is_taken(folder: Path) -> bool:
    """Whether a living process works on the trial in a folder."""
    try:
        return is_locked(folder / TRIAL_LOCK)
    except OSError:  # it was ended before it had made the file
        return False
