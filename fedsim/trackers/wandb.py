"""Weights & Biases: rows with their round as the axis, options, summary and files; a sweep's runs as a group.

W&B's settings are its own, from its files and the environment: whether it sends anything, where to, and with which key
(`wandb login`, WANDB_API_KEY, WANDB_MODE). Its reports of errors to its makers are off, unless the environment has them
on. The number of a row is W&B's step, by which a row that is told again, after the last checkpoint of a run that was
killed offline, is the one that is there; the axis of its charts is the round.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from fedsim.core.errors import InputError
from fedsim.core.extras import library
from fedsim.core.options import Texts, options
from fedsim.trackers.base import Ending, Log, Row, TrackedRun, Tracker

WELL = ("finished", "stopped")
"""Ends that W&B shows as such; others have failed."""
LOCAL = ("offline", "disabled", "dryrun")
"""Modes in which nothing is sent."""


@options
class WandB(Tracker):
    """The group of a run is its sweep, its job type the combination of the grid."""

    library: ClassVar[tuple[str, str]] = ("wandb", "wandb")

    project: str | None = None
    """W&B's project. Not given: the one that W&B's settings say."""
    entity: str | None = None
    """The user or team whose it is. Not given: the one that W&B's settings say."""
    mode: Literal["online", "offline", "disabled"] | None = None
    """Whether rows are sent, or kept on the disk for `wandb sync`. Not given: as W&B's settings say."""
    folder: str | None = None
    """Where W&B keeps its files. Not given: where its settings say, or in `wandb/` of the current folder."""
    tags: Texts = ()
    """Tags of the run."""
    settings: Mapping[str, Any] | None = None
    """Others of `wandb.Settings`, as { disable_git = true, x_disable_stats = true }. Not given: as W&B has them."""
    model: bool = False
    """Have the final model among the files, too."""

    def check(self, saved: bool) -> None:
        """See `Tracker.check`; W&B must know all settings, and a key where it is to send something."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # which it reads when it is imported
        super().check(saved)
        if self.model and not saved:
            raise InputError("model", True, "with save = False no model is kept; leave one of the two out")
        wandb = library("wandb", "wandb", "wandb", "kind")
        own = self.settings or {}
        try:
            wandb.Settings(**own)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"]))
            remedy = f"is no setting of this version of wandb: {first['msg'].lower()}"
            raise InputError(f"settings.{name}", first["input"], remedy) from error
        mode = self.mode or own.get("mode") or wandb.setup().settings.mode
        host = own.get("base_url")
        if mode not in LOCAL and not wandb.login(prompt=False, verify=False, host=host):
            remedy = 'W&B has no key here; run wandb login, set WANDB_API_KEY, or take mode = "offline"'
            raise InputError("mode", mode, remedy)

    def begin(self, run: TrackedRun) -> Log:
        """Begin a run of W&B's, or go on with the one that has this run's key as its id."""
        import wandb

        kept = Path(wandb.setup().settings.wandb_dir)
        if self.folder is not None:
            kept = Path(self.folder) / "wandb"
            kept.mkdir(parents=True, exist_ok=True)
        before = any(kept.glob(f"offline-run-*-{run.key}*"))
        made = wandb.init(
            id=run.key,
            resume="allow",
            reinit="create_new",
            name=run.label,
            group=None if run.group is None else run.group.name,
            job_type=None if run.group is None else run.label.rpartition("/")[0] or None,
            config={**run.options, "tags": dict(run.tags)},
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            dir=self.folder,
            tags=list(self.tags),
            settings=wandb.Settings(**{"console": "off", **(self.settings or {})}),
        )
        had = made.starting_step if made.resumed else len(run.rows) if before else 0
        return _WandBRun(made, run.key, had, self.model)


class _WandBRun(Log):
    """A run of W&B's. had: so many rows were told before."""

    def __init__(self, made: Any, key: str, had: int, model: bool) -> None:
        self._made, self._key, self._model = made, key, model
        self.had = self._step = had
        made.define_metric("round")
        made.define_metric("*", step_metric="round")

    def add(self, rows: Sequence[Row]) -> None:
        """Take the next rows."""
        for row in rows:
            self._made.log(dict(row), step=self._step)
            self._step += 1

    def end(self, ending: Ending) -> None:
        """Take the summary, and the files as an artifact."""
        import wandb

        self._made.summary.update(dict(ending.summary) | {"status": ending.status, "reason": ending.reason})
        files = dict(ending.files)
        if self._model and ending.model is not None:
            files[ending.model.name] = ending.model
        if files:
            artifact = wandb.Artifact(f"run-{self._key}", type="run")
            for name, path in files.items():
                artifact.add_file(str(path), name=name)
            self._made.log_artifact(artifact)
        self._made.finish(exit_code=0 if ending.status in WELL else 1)
