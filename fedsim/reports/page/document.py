"""The page: its facts in a template, its numbers compressed beside them, and the scripts that draw them."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import importlib.util
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedsim.core.errors import FedsimError
from fedsim.core.files import write_whole
from fedsim.reports.comparison import Comparison, compare
from fedsim.reports.page.columns import as_json, compressed
from fedsim.reports.page.facts import Facts
from fedsim.reports.page.numbers import numbers
from fedsim.running.result import Result
from fedsim.running.study import Study

SCRIPTS = (
    *("start.js", "tables.js", "figures.js", "curves.js", "panels.js", "outcomes.js", "clients.js", "personal.js"),
    *("time.js", "tried.js", "live.js", "begin.js"),
)
"""The scripts of the page, in their order: one function, so that none of their names meets one of Plotly's."""
PLOTLY = "package_data/plotly.min.js"


def page(comparison: Comparison, *, study: Study | None = None, live: bool = False) -> str:
    """Runs as one HTML page. study: the search that they are of.

    live: it asks its own address for news, and keeps what its reader has chosen.

    Nothing of what runs are called or hold becomes markup or script: texts are escaped, numbers are compressed, and the
    page's policy lets only the scripts run whose hashes it names. It loads nothing. FedsimError: plotly's file is gone.
    """
    facts = Facts(comparison, study)
    return (
        _templates()
        .get_template("page.html")
        .render(
            facts=facts,
            live=live,
            policy=policy(live=live),
            style=_own("style.css"),
            script=_script(),
            plotly=_plotly().packed,
            numbers=compressed(as_json(numbers(comparison, facts.tried))),
        )
    )


def write_page(runs: Comparison | Result, path: Path, *, study: Study | None = None) -> None:
    """Write the page into a file, whole or not at all. StorageError: it cannot be written."""
    comparison = runs if isinstance(runs, Comparison) else compare(runs)
    write_whole(path, page(comparison, study=study).encode())


class _Library:
    """A script that is not ours: as it is run, and as the page has it."""

    def __init__(self, text: str) -> None:
        self.text, self.packed = text, compressed(text)


@cache
def _plotly() -> _Library:
    """Plotly's JavaScript, found without importing its Python, which takes long."""
    spec = importlib.util.find_spec("plotly")
    for place in [] if spec is None else spec.submodule_search_locations or ():
        file = Path(place) / PLOTLY
        if file.is_file():
            return _Library(file.read_text(encoding="utf-8"))
    raise FedsimError("the page needs plotly's JavaScript, which is not here: pip install --force-reinstall plotly")


@cache
def _script() -> str:
    parts = "\n".join(_own(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}\n}})();\n'


@cache
def policy(*, live: bool) -> str:
    """What a browser is to let the page do: run its scripts, style itself, draw; live: ask its server; no more."""
    sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (_script(), _plotly().text)]
    hashes = " ".join(f"'sha256-{checksum}'" for checksum in sums)
    rules = ["default-src 'none'", f"script-src {hashes}", "style-src 'unsafe-inline'", "img-src data: blob:"]
    rules += ["connect-src 'self'"] if live else []
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def _own(name: str) -> str:
    return (importlib.resources.files("fedsim.reports.page") / name).read_text(encoding="utf-8")


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("fedsim.reports.page", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
