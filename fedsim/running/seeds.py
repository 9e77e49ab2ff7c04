"""Seeds as one stack: the runs of an experiment under several seeds, in lockstep, in one process.

Their clients are executed together (see `fedsim.running.lockstep`), so that on small functions ten seeds take much less
than ten runs. Every number but `wall` is that of the single run, and so are the run folders. A run that diverges,
stalls or stops leaves the others; any other error ends them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fedsim.configuration.tables import Experiment
from fedsim.core.errors import InputError
from fedsim.engine.base import Engine
from fedsim.exchange.aggregation import Aggregator
from fedsim.problems.base import Problem
from fedsim.problems.black_box import BlackBox
from fedsim.running.build import build_engine, build_executor
from fedsim.running.folder import RunFolder
from fedsim.running.lockstep import Lockstep, Member
from fedsim.running.many import hold_few, length
from fedsim.running.result import Result, Round
from fedsim.running.runner import execute

Heard = Callable[[int, Round], object]
"""A callback that is called with the seed, too."""


def run_seeds(
    experiment: Experiment,
    seeds: Sequence[int],
    *,
    problem: BlackBox | None = None,
    on_round: Heard | None = None,
    out: Path | str | None = None,
    force: bool = False,
    save: bool = True,
    group: Path | str | None = None,
) -> list[Result]:
    """Run an experiment on black boxes under each of these seeds: the results, in their order.

    problem: your own, the same for all, instead of the one that the experiment describes under each seed. on_round: see
    `Heard`. out: the folder of the run folders `seed-<k>`, by default the next `runs/<name>-<n>`; force: replace
    earlier runs in them. save: False writes nothing. group: see `fedsim.run`; by default it is `out`.
    InputError: an option cannot be used, or this is no black box.
    """
    if not (experiment.values_only if problem is None else isinstance(problem, BlackBox)):
        kind = type(experiment.problem if problem is None else problem).__name__
        raise InputError("problem", kind, "only seeds of black boxes run as one stack; run fedsim sweep --seeds")
    hold_few("seeds", "(all)", length(seeds))
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError("seeds", list(seeds), "give different whole numbers, one at least")
    if not save:
        return _driven(experiment, seeds, problem, on_round, dict.fromkeys(seeds), force, None)
    RunFolder.check(None if out is None else Path(out), experiment.name, force=True)
    place = RunFolder.create(None, experiment.name) if out is None else RunFolder(Path(out))
    folders = {seed: place.path / f"seed-{seed}" for seed in seeds}
    try:
        for folder in folders.values():
            RunFolder.check(folder, experiment.name, force=force)
        together = place.path if group is None else Path(group)
        return _driven(experiment, seeds, problem, on_round, folders, force, together)
    finally:
        place.discard()  # which it does if no run has been left in it


def _driven(
    experiment: Experiment,
    seeds: Sequence[int],
    problem: BlackBox | None,
    on_round: Heard | None,
    folders: dict[int, Path] | dict[int, None],
    force: bool,
    group: Path | None,
) -> list[Result]:
    """Run all seeds in lockstep; a folder that is None: without one."""
    lockstep = Lockstep(len(seeds))

    def one(number: int, seed: int) -> Result:
        own, folder = experiment.with_seed(seed), folders[seed]

        def engine(problem: Problem, aggregator: Aggregator) -> Engine:  # noqa: ARG001
            executor = build_executor(own, problem, partial(Member, lockstep=lockstep, number=number))
            return build_engine(own, problem, executor)

        callbacks = [] if on_round is None else [partial(on_round, seed)]
        return execute(
            own,
            problem=problem,
            engine=engine,
            callbacks=callbacks,
            out=folder,
            force=force,
            save=folder is not None,
            group=group,
        )

    return lockstep.drive([partial(one, number, seed) for number, seed in enumerate(seeds)])
