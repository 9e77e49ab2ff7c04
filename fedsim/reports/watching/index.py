"""The list of runs as a page, in the style of the page of a run."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from fedsim.core.html import cell
from fedsim.core.terminal import printable
from fedsim.reports.listing import Listed
from fedsim.reports.watching.shelf import Line, key_of


@dataclass(frozen=True)
class Row:
    """A run, or the heading of those in a folder, as the list has it. key: where its page is.

    run: what is said of the run; None: it is a heading. said: how many runs a heading stands for, and their status.
    """

    key: str
    name: str
    run: Listed | None = None
    said: str = ""

    @property
    def share(self) -> tuple[float, float] | None:
        """How far the run is and where it is to end: in rounds, or in virtual seconds where these are nearer."""
        run = self.run
        ends = [] if run is None else [(run.rounds, run.asked), (run.time, run.duration)]
        known = [(done, end) for done, end in ends if end]
        return max(known, key=lambda share: share[0] / share[1], default=None)

    @property
    def progress(self) -> str:
        """The same in words."""
        if self.share is not None:
            return f"{cell(self.share[0])} of {cell(self.share[1])}"
        return "" if self.run is None else cell(self.run.rounds)

    @property
    def when(self) -> str:
        """When the run has written its last row, by the clock of this machine."""
        return f"{datetime.fromtimestamp(self.run.when):%Y-%m-%d %H:%M:%S}" if self.run and self.run.when else ""


@dataclass(frozen=True)
class Section:
    """A run by itself, or all below a folder with a heading. key: what it is known by in the page."""

    key: str
    heading: Row | None
    rows: tuple[Row, ...]
    newest: int


def index(name: str, lines: Sequence[Line], trouble: str) -> str:
    """The list as HTML. name: of the folder; trouble: why nothing can be said of it; empty: all is well."""
    return _template().render(
        name=printable(name),
        said=_counted(lines) if lines else "No run is here yet.",
        trouble=trouble,
        sections=sections(lines),
        cell=cell,
        style=_own("fedsim.reports.page", "style.css") + _own("fedsim.reports.watching", "index.css"),
        script=_script(),
    )


def sections(lines: Sequence[Line]) -> list[Section]:
    """The runs by the folder that they are in below the one that is watched; where one has begun last comes first."""
    made = []
    for top, members in groupby(lines, key=lambda line: line.place.partition("/")[0]):
        inner = list(members)
        newest = max(line.began for line in inner)
        if inner[0].place == top:
            made.append(Section(key_of(top), None, (_row(inner[0], ""),), newest))
        else:
            heading = Row(key_of(top), printable(top), said=_counted(inner))
            made.append(Section(key_of(top), heading, tuple(_rows(top, inner)), newest))
    return sorted(made, key=lambda section: -section.newest)


def _rows(top: str, lines: Sequence[Line]) -> Iterator[Row]:
    """The runs below a folder, those that share a folder further below, as seeds do, under a heading of theirs."""
    for parent, members in groupby(lines, key=lambda line: line.place.rpartition("/")[0]):
        inner = list(members)
        if parent != top and len(inner) > 1:
            yield Row(key_of(parent), printable(parent.removeprefix(f"{top}/")), said=_counted(inner))
            yield from (_row(line, parent) for line in inner)
        else:
            yield from (_row(line, top) for line in inner)


def _row(line: Line, above: str) -> Row:
    """A run as it is called below a folder; the one that is watched, if it is a run itself, by its own name."""
    name = line.place.removeprefix(f"{above}/") or line.run.folder.resolve().name
    return Row(line.key, printable(name), line.run)


def _counted(lines: Sequence[Line]) -> str:
    """How many runs there are, and how they have ended."""
    counted = Counter(line.run.status for line in lines)
    runs = f"{len(lines):,} run{'' if len(lines) == 1 else 's'}"
    return f"{runs}: {', '.join(f'{number:,} {status}' for status, number in counted.items())}"


def index_policy() -> str:
    """What a browser is to let the list do: run its one script, style itself, and ask this server."""
    script = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    rules = ("default-src 'none'", f"script-src 'sha256-{script}'", "style-src 'unsafe-inline'", "img-src data:")
    return "; ".join((*rules, "connect-src 'self'", "form-action 'self'", "base-uri 'none'"))


def _script() -> str:
    return _own("fedsim.reports.watching", "index.js")


@cache
def _own(package: str, name: str) -> str:
    return (importlib.resources.files(package) / name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    templates = Environment(
        loader=PackageLoader("fedsim.reports.watching", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("index.html")
