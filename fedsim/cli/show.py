"""`fedsim show`: a run on one page of text: how it went, what it was, its files, and how to go on with it."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fedsim.cli.answers import Answer, Json, answering
from fedsim.cli.arguments import run_folders
from fedsim.cli.ls import age
from fedsim.cli.sparkline import Curve, sparkline
from fedsim.cli.words import number_of, size_of
from fedsim.core.errors import InputError, one_line
from fedsim.core.measures import Asked, first

if TYPE_CHECKING:
    from fedsim.configuration.tables import Experiment
    from fedsim.reports.listing import Listed
    from fedsim.running.history import Row
    from fedsim.running.stored import StoredRun

Differences = Mapping[str, tuple[Any, Any]]
"""Values and defaults by option."""
CURVE = 24
"""Letters of a curve."""


def show(
    run: Annotated[Path, typer.Argument(help="A run folder.", autocompletion=run_folders)],
    as_json: Json = False,
) -> None:
    """Show a run: how it went, which options are not as by default, its files, and how to go on with it."""
    from fedsim.reports.listing import read
    from fedsim.running.stored import open_run

    with answering(as_json=as_json) as answer:
        stored, listed = open_run(run), read(run)
        if listed.fault:
            raise InputError("run", *listed.fault.split(": ", 1))
        made, fault = _made(stored)
        differences = {} if made is None else dict(_differences(made))
        files = dict(_files(run))
        commands = {} if made is None else dict(_commands(stored, listed, made))
        told = {
            "reason": (stored.summary() or {}).get("reason", ""),
            "summary": stored.summary(),
            "differs": {name: {"value": value, "default": default} for name, (value, default) in differences.items()},
            "versions": stored.config().get("versions", {}),
            "files": files,
            "commands": commands,
        }
        answer.give(listed.record() | told)
        if as_json:
            return
        _say_head(answer, listed, told["reason"])
        answer.lay_out(_measures(stored.rows(), stored.asked()))
        answer.tell(
            "\noptions that are not as by default" if made else f"\nits options cannot be told: {one_line(fault)}"
        )
        for name, (value, default) in differences.items():
            answer.tell(f"  {one_line(name)} = {one_line(_toml(value))}{_instead(default)}")
        answer.tell(f"\nfiles, {size_of(listed.size)}")
        for name, size in files.items():
            answer.tell(f"  {name}  {size_of(size)}")
        versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
        answer.tell(f"\nmade with {one_line(versions)}")
        for what, command in commands.items():
            answer.tell(one_line(f"{what}: {command}"))


def _say_head(answer: Answer, run: Listed, reason: str) -> None:
    answer.tell(one_line(f"{run.folder}: {run.status}, {age(time.time() - run.when)} ago"))
    ends = f" of {run.asked}" if run.asked is not None else ""
    spent = f", {run.time:.4g} of {run.duration:.4g} virtual seconds" if run.duration is not None else ""
    answer.tell(one_line(f"{run.name}, seed {run.seed}: {run.rounds}{ends} rounds{spent}"))
    if reason:
        answer.tell(one_line(reason))
    answer.tell("")


def _measures(rows: list[Row], asked: Asked) -> Table:
    """A line a measure: its last and its best value, and its curve."""
    from fedsim.core.measures import is_measure
    from fedsim.reports.tail import SoFar

    so_far = SoFar(asked)
    for row in rows:
        so_far.take(row)
    found = dict.fromkeys(name for row in rows for name in row if is_measure(name, asked))
    names = [*(name for name in first(asked) if name in found), *(name for name in found if name not in first(asked))]
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("measure", overflow="fold")
    for heading in ("last", "best", "round"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name in names:
        curve = Curve()
        for row in rows:
            if row.get(name) is not None:
                curve.add(row[name])
        best, number = so_far.best.get(name, (None, "-"))
        cells = [_number(name, so_far.last[name]), _number(name, best), str(number)]
        table.add_row(Text(one_line(name)), *cells, sparkline(curve.values, CURVE, sys.stdout.encoding))
    return table


def _number(name: str, value: float | None) -> str:
    return "not finite" if value is None else number_of(name, value)


def _made(stored: StoredRun) -> tuple[Experiment | None, str]:
    """The experiment of a run; without it why there is none, as a plug-in that is not installed here."""
    from fedsim.running.resume import recorded

    try:
        return recorded(stored.path), ""
    except InputError as error:
        return None, str(error)


def _differences(made: Experiment) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The options of an experiment that are not as by default, by their names, with both values."""
    from fedsim.configuration.tables import LISTS, PLUGINS, TABLES

    for part, (group, usual) in PLUGINS.items():
        if part != "partition" or not made.values_only:
            kind = usual if isinstance(usual, str) else usual["kind"]
            yield from _plugin(part, group, getattr(made, part), kind)
    for part, group in LISTS.items():
        for number, one in enumerate(getattr(made, part)):
            yield from _plugin(f"{part}.{number}", group, one, None)
    for table in TABLES:
        if (held := getattr(made, table)) is not None:
            yield from _options(table, held)


def _plugin(name: str, group: str, made: Any, usual: str | None) -> Iterator[tuple[str, tuple[Any, Any]]]:
    from fedsim.core.plugins import kind_of

    if (kind := kind_of(group, made)) != usual:
        yield f"{name}.kind", (kind, usual)
    yield from _options(name, made)


def _options(name: str, made: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    from fedsim.cli.places import default_of, differing
    from fedsim.core.plugins import HasPlugins

    for option, value, default in differing(made):
        yield f"{name}.{option}", (value, default)
    usual = {field.name: default_of(field) for field in dataclasses.fields(made)}
    for option, inner in made.made.items() if isinstance(made, HasPlugins) else ():
        default = usual[option]["kind"] if isinstance(usual[option], Mapping) else usual[option]
        several = enumerate(inner) if isinstance(inner, tuple) else [("", inner)]
        for number, one in several:
            if one is not None:
                place = f"{name}.{option}" if number == "" else f"{name}.{option}.{number}"
                yield from _plugin(place, made.parts[option], one, default)


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """The files of a run that are there, and folders in it, with their bytes."""
    from fedsim.reports.listing import size
    from fedsim.running.stored import FILES, FOLDERS

    for name in (*FILES, *FOLDERS):
        path = folder / name
        if path.is_dir() and name in FOLDERS:
            yield f"{name}/", size(path)
        elif path.is_file() and name in FILES:
            yield name, path.stat().st_size


def _commands(stored: StoredRun, run: Listed, made: Experiment) -> Iterator[tuple[str, str]]:
    """What a run can be followed by, and the command for it."""
    from fedsim.running.more_rounds import hold_extensible
    from fedsim.running.runner import unresumable
    from fedsim.running.stored import CONFIG, END

    place, own = shlex.quote(str(run.folder)), stored.config().get("problem") == {"kind": "own"}
    if run.status in ("interrupted", "failed") and unresumable(made) is None:
        yield "to go on", f"fedsim.resume({str(run.folder)!r}, problem=...)" if own else f"fedsim run --resume {place}"
    elif run.status == "finished" and (stored.path / END).is_file() and made.rounds is not None:
        more = 2 * made.rounds
        with suppress(InputError):  # a longer run would not have had these rows
            hold_extensible(made, more)
            from_python = f"fedsim.resume({str(run.folder)!r}, experiment of {more} rounds, problem=...)"
            yield "more rounds", from_python if own else f"fedsim run --resume {place} --set rounds={more}"
    if not own:
        data = "" if made.data_dir is None else f" --data-dir {shlex.quote(str(made.data_dir))}"
        yield "again", f"fedsim run {shlex.quote(str(run.folder / CONFIG))}{data}"
    yield "as a page", f"fedsim report {place}"


def _toml(value: Any) -> str:
    from fedsim.cli.reference import toml_of

    return "(not given)" if value is None else toml_of(value)


def _instead(default: Any) -> str:
    return "" if default is None else f"  (by default {one_line(_toml(default))})"
