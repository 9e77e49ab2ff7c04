"""A run that has had all its rounds is to have more, and to end with the bytes of one that had them from the start.

It goes on from the state of its end, which lies in end.safetensors. What its last rows would have been in the longer
run they must have been in this one.
"""

from __future__ import annotations

from typing import Any

from fedsim.configuration.tables import Experiment
from fedsim.core.errors import InputError
from fedsim.core.files import look
from fedsim.running.checkpoint import Checkpoint, DamagedError, FormatError, UnusableError, read, write
from fedsim.running.folder import RunFolder
from fedsim.running.stored import END, SUMMARY


def more_rounds(made: Experiment, wanted: Experiment | None) -> int | None:
    """How many rounds the run of `made` is to have, where `wanted` asks for more; None: it does not."""
    if wanted is None or made.rounds is None or wanted.rounds is None or wanted.rounds <= made.rounds:
        return None
    return wanted.rounds


def hold_extensible(made: Experiment, rounds: int) -> None:
    """Refuse to go on after the last round where a run of so many rounds had other rows until then. InputError."""
    evaluation, last, privacy = made.evaluation, made.rounds, made.privacy
    anew = f"begin a run with rounds = {rounds} instead"
    if privacy is not None and (privacy.epsilon is not None or privacy.bands is not None):
        option = "epsilon" if privacy.epsilon is not None else "bands"
        raise InputError(f"privacy.{option}", getattr(privacy, option), f"the noise was made for {last} rounds; {anew}")
    if last is None or made.duration is not None:
        raise InputError("duration", made.duration, f"the run ends by time, which cuts a round short; {anew}")
    if evaluation.rounds == 0 or last % evaluation.rounds:
        option = "every" if evaluation.every_seconds is None else "every_seconds"
        given = getattr(evaluation, option)
        remedy = f"the model was judged after round {last} only because that was the last; {anew}"
        raise InputError(f"evaluation.{option}", given, remedy)
    if evaluation.tries and not evaluation.attacks_after(last):
        remedy = f"the model was attacked after round {last} only because that was the last; {anew}"
        raise InputError("evaluation.attacks_every", evaluation.attacks_every, remedy)


def end_of(folder: RunFolder) -> Checkpoint:
    """The state at the end of a run that has had all its rounds. InputError: there is none that can be used."""
    status, path = folder.ended(), folder.path / END
    if status != "finished":
        raise InputError("resume", str(folder.path), f"this run has {status}; only one that has finished can have more")
    if look(path, "resume") is None:
        remedy = "its end was not kept (see checkpoint.last and checkpoint.every); begin it anew in another folder"
        raise InputError("resume", str(folder.path), remedy)
    try:
        return read(path)
    except (DamagedError, FormatError) as error:
        raise UnusableError("resume", str(folder.path), f"{error}; begin it anew in another folder") from error


def begin_again(folder: RunFolder, end: Checkpoint, config: dict[str, Any]) -> None:
    """Make a run that has ended one that goes on: with a checkpoint, then with a config.toml that asks for more rounds.

    Whoever is killed in between leaves a run that has ended as before, or one that goes on. config: the new tables.
    """
    write(folder.checkpoints, int(config["rounds"]), Checkpoint(end.snapshot, end.position, end.rows, config))
    folder.write_config(config)
    folder.remove(SUMMARY)
    folder.remove(END)
