"""A page for every method, made from its docstrings: rule, options, how it is used, source."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tomli_w

from fedsim.cli import reference
from fedsim.cli.describe import GROUPS
from fedsim.cli.places import gather
from fedsim.configuration.tables import LISTS
from fedsim.core.blame import ROOT
from fedsim.core.plugins import option_class, ours
from website import maths
from website.usage import uses

SINGULAR = {plural: singular for singular, plural in GROUPS.items()}
TITLES = {
    "estimators": "Gradient estimators",
    "datasets": "Data sets",
    "speeds": "Speeds of devices",
    "availabilities": "Availability of devices",
}
"""Titles of groups that are not their names."""
DISPLAYED = 80
"""How many letters a line may have beside its formulas to be shown as one."""
PGD = {"kind": "pgd", "epsilon": 0.1}
EXAMPLES: dict[tuple[str, str], dict[str, Any]] = {
    ("aggregators", "bulyan"): {"malicious": 1},
    ("aggregators", "krum"): {"malicious": 2},
    ("aggregators", "multi_krum"): {"malicious": 2, "keep": 5},
    ("attacks", "autoattack"): {"epsilon": 0.1},
    ("attacks", "cw"): {"epsilon": 0.1},
    ("attacks", "mim"): {"epsilon": 0.1},
    ("availabilities", "bernoulli"): {"probability": 0.8, "period": 60.0},
    ("availabilities", "diurnal"): {"mean": 0.5, "amplitude": 0.3},
    ("availabilities", "markov"): {"mean_on": 600.0, "mean_off": 300.0, "period": 60.0},
    ("availabilities", "trace"): {"file": "presence.csv"},
    ("clients", "fedcbo"): {"epochs": 1},
    ("clients", "perfedavg"): {"epochs": 1, "inner_lr": 0.1},
    ("datasets", "parquet"): {"path": "visits.parquet", "label": "outcome"},
    ("datasets", "torchvision"): {"name": "EMNIST", "path": "emnist"},
    ("defences", "calfat"): {"attack": PGD},
    ("defences", "cc_ibp"): {"attack": PGD},
    ("defences", "dbfat"): {"attack": PGD},
    ("defences", "exp_ibp"): {"attack": PGD},
    ("defences", "ibp"): {"epsilon": 0.1},
    ("defences", "mart"): {"attack": PGD},
    ("defences", "trades"): {"attack": PGD},
    ("partitions", "exponential"): {"clients": 10},
    ("partitions", "linear"): {"clients": 10},
    ("partitions", "square"): {"clients": 10},
    ("selectors", "fastest"): {"count": 10},
    ("selectors", "oort"): {"count": 10},
    ("selectors", "power_of_choice"): {"count": 10, "pool": 30},
    ("selectors", "round_robin"): {"count": 10},
    ("selectors", "weighted"): {"count": 10},
    ("speeds", "trace"): {"file": "speeds.csv"},
    ("speeds", "uniform"): {"low": 0.5, "high": 2.0},
    ("speeds", "zipf"): {"seconds": 1.0, "exponent": 1.5},
    ("transforms", "clip"): {"max_norm": 1.0},
    ("transforms", "noise"): {"std": 0.01},
    ("transforms", "ef21_plus"): {"compressor": {"kind": "top_k", "ratio": 0.01}},
}
"""What must be given to methods that neither an experiment nor a page of ours uses."""


def title(group: str) -> str:
    """What the pages of a group are under."""
    return TITLES.get(group, group.capitalize())


@dataclass(frozen=True)
class Method:
    """A plug-in of ours."""

    group: str
    kind: str

    @property
    def made(self) -> type[Any]:
        """Its option class."""
        return option_class(self.group, self.kind, "kind")

    @property
    def path(self) -> str:
        """Its page within the site."""
        return f"methods/{self.group}/{self.kind}.md"

    @property
    def options(self) -> list[str]:
        """The names of its options, which formulas have, too."""
        return [field.name for field in fields(self.made)]

    @property
    def file(self) -> Path:
        """Its source, from the root of the repository."""
        source = inspect.getsourcefile(self.made)
        assert source is not None
        return Path(source).relative_to(ROOT)


def methods() -> list[Method]:
    """All of ours, by group."""
    return [Method(group, kind) for group in GROUPS.values() for kind in ours(group)]


def formulas(method: Method) -> list[maths.Piece]:
    """The formulas of a method's rule."""
    described = reference.describe(method.made)
    lines = itertools.chain.from_iterable(described.rule)
    return [piece for line in lines for piece in maths.pieces(line, method.options) if piece.mathml]


def index(group: str) -> Iterator[str]:
    """Lines of the page of a group."""
    yield f"# {title(group)}"
    yield ""
    yield f"`fedsim describe {SINGULAR[group]}` lists them in a terminal."
    yield ""
    yield "| | |"
    yield "|---|---|"
    for method in methods():
        if method.group == group:
            yield f"| [`{method.kind}`]({method.kind}.md) | {reference.escaped(reference.summary(method.made))} |"


def experiments(method: Method) -> list[Path]:
    """The experiments that use a method; first those that are named after it."""
    found = dict.fromkeys(use.page for use in uses().get((method.group, method.kind), []) if use.is_experiment)
    return sorted(found, key=lambda path: method.kind not in path.stem)


def page(method: Method, figure: tuple[str, str] | None = None) -> Iterator[str]:
    """Lines of a method's page. figure: the address of a picture from there, and what it shows."""
    described = reference.describe(method.made)
    yield f"# `{method.kind}`"
    yield ""
    yield from _rule(method, described)
    yield ""
    yield "## Use"
    yield ""
    yield from _use(method)
    if figure is not None:
        address, caption = figure
        yield ""
        yield f"![{caption.replace('`', '')}]({address})"
        yield ""
        yield f"{caption}."
    yield ""
    yield "## Options"
    yield ""
    yield from _options(described)
    if described.sources:
        yield ""
        yield "## Source"
        yield ""
        for named in described.sources:
            yield f"- {reference.escaped(named)}"
    yield ""
    yield "## Code"
    yield ""
    yield f"`{method.made.__name__}` in `{method.file}`"
    yield ""


def _rule(method: Method, described: reference.Description) -> Iterator[str]:
    """The rule as a block of HTML, in which Markdown sees no emphasis: a line that has formulas stays one."""
    yield '<div class="rule">'
    for number, paragraph in enumerate(described.rule):
        for line in paragraph:
            said = "".join(piece.text for piece in maths.pieces(line, method.options) if not piece.mathml)
            displayed = len(said) < DISPLAYED and len(said) < len(line) and reference.FORMULA.search(line)
            shown = "formula" if displayed else ("lead" if number == 0 else "text")
            yield f'<p class="{shown}">{maths.html(line, method.options)}</p>'
    yield "</div>"


def _use(method: Method) -> Iterator[str]:
    """How an experiment names it, the command that runs one that does, and where else it stands."""
    yield "```toml"
    yield example(*first_use(method)).rstrip()
    yield "```"
    yield ""
    files = experiments(method)
    yield "```console"
    if files:
        yield f"fedsim run {files[0]}"
    yield f"fedsim describe {SINGULAR[method.group]} {method.kind}"
    yield "```"
    if files:
        yield ""
        yield f"Experiments: {', '.join(f'`{path}`' for path in files)}."
    used = uses().get((method.group, method.kind), [])
    pages = list(dict.fromkeys(use.page for use in used if not use.is_experiment))
    if pages:
        yield ""
        yield f"Pages: {', '.join(map(_linked, pages))}."


def first_use(method: Method) -> tuple[str, Any]:
    """Where a method may stand in an experiment, and what stands there: as in ours, or else with what it must have."""
    used = uses().get((method.group, method.kind))
    if used:
        return used[0].place, used[0].value
    given = EXAMPLES.get((method.group, method.kind))
    return gather()[method.group].tables[0], method.kind if given is None else {"kind": method.kind, **given}


def example(place: str, value: Any) -> str:
    """A table of an experiment file that names a method."""
    head, *inner = place.split(".")
    for option in reversed(inner):
        value = {option: value}
    if inner and isinstance(value, dict):
        return tomli_w.dumps({head: value})
    return tomli_w.dumps({head: [value] if head in LISTS else value})


def _linked(path: Path) -> str:
    title = (ROOT / path).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    return f"[{title}](../../{'overview.md' if path.name == 'README.md' else path.name})"


def _options(described: reference.Description) -> Iterator[str]:
    if not described.options:
        yield "None."
        return
    yield from reference.table(described.options)
    for option in described.options:
        if option.kinds:
            yield ""
            yield f"`{option.name}` is one of these, each with its options:"
            yield ""
            for kind in option.kinds:
                yield f"- {reference.escaped(kind)}"
