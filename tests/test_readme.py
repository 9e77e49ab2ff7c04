"""The README says what is so: its snippets run, its commands work, its reference is the one of the code.

Python blocks run one after the other in one process, warnings being errors; a block whose first line is a comment with
a file's name is written to that file. `fedsim` lines of console blocks run in the same folder as they stand, but for
two rounds each (`--set rounds=2`) and the data folder, where one is at hand. Other lines (pip, flwr) are not run here.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim import configuration, registry
from fedsim.adversarial.training import Defence
from fedsim.curriculum.samples import SampleCurriculum
from fedsim.devices.fleet import Bandwidth, Devices, Failure
from fedsim.problems.expert import Expert

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
REFERENCE = ROOT / "docs" / "reference.md"
BEGIN, END = "<!-- reference: begin -->", "<!-- reference: end -->"
RENEW = "FEDSIM_RENEW_REFERENCE"
SECTIONS = (
    ("strategy", "strategies"),
    ("client", "clients"),
    ("client.adversarial", "defences"),
    ("client.adversarial.attack", "attacks"),
    ("client.estimator", "estimators"),
    ("problem", "problems"),
    ("problem.dataset", "datasets"),
    ("problem.model", "models"),
    ("partition", "partitions"),
    ("selection", "selectors"),
    ("aggregation", "aggregators"),
    ("[transforms]", "transforms"),
)
"""Tables of an experiment file, and the group of plug-ins that each names by `kind`."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("   #")[0].strip() for block in blocks("console") for line in block.splitlines()]
    return [line for line in lines if line.startswith("fedsim ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the checkout is for a reader: the experiments, and the files that the README has them write."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    for block in blocks("python") + blocks("toml"):
        head = re.match(r"# (\S+\.(?:py|toml))\b", block)
        if head is not None:
            (folder / head[1]).write_text(block, encoding="utf-8")
    return folder


def execute(arguments: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=place, capture_output=True, text=True, timeout=240, check=False)


def test_python_blocks_run(place: Path) -> None:
    found = blocks("python")
    assert len(found) >= 3
    # Warnings are errors once the libraries are in: flwr-datasets and its friends warn of each other when imported.
    script = "import warnings, fedsim.runner, sklearn.datasets\nwarnings.simplefilter('error')\n" + "\n".join(found)
    done = execute([sys.executable, "-c", script], place)
    assert done.returncode == 0, done.stderr


def test_commands_work(place: Path) -> None:
    """One after the other, since later ones compare what earlier ones left."""
    lines, folder = commands(), os.environ.get("FEDSIM_DATA", "")
    assert len(lines) >= 7
    for line in lines:
        words = shlex.split(line)
        if "--data-dir" in words:
            if not Path(folder or "nowhere").is_dir():
                continue
            words[words.index("--data-dir") + 1] = folder
        if words[1] == "run":
            words += ["--set", "rounds=2"]
        done = execute([sys.executable, "-m", "fedsim", *words[1:]], place)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout, line


def test_experiment_files_are_sound() -> None:
    first, *others = blocks("toml")
    assert first == (ROOT / "experiments" / "digits_fedavg.toml").read_text(encoding="utf-8")
    for block in others:
        fedsim.experiment(**tomllib.loads(block))


def test_first_commands_are_those_that_ci_runs() -> None:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert lines[:2] == [
        "pip install -c constraints.txt -e . && fedsim run experiments/digits_fedavg.toml",
        "pip install -c constraints.txt -e '.[dev]' && pytest",
    ]
    assert lines[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", README.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_reference_is_that_of_the_code() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = "\n".join([before + BEGIN, "", *reference(), "", END + after])
    if os.environ.get(RENEW):
        REFERENCE.write_text(wanted, encoding="utf-8")
    assert text == wanted, (
        f"options have changed: run {RENEW}=1 pytest tests/test_readme.py, read the change, commit it"
    )


def reference() -> Iterator[str]:
    """A row for each plug-in and for each table without plug-ins, made from the option classes."""
    yield "| table | kind | options | notes |"
    yield "|---|---|---|---|"
    yield row("", "", configuration._Top)
    shown: set[type] = set()
    for table, group in SECTIONS:
        for name, entry in registry.names(group).items():
            made = entry.load()
            if made not in installed():
                continue
            shared = [base for base in made.__mro__[1:] if dataclasses.is_dataclass(base)]
            for base in reversed([base for base in shared if own_fields(base) and base not in shown]):
                shown.add(base)
                yield row(table, f"*{base.__name__}*", base)
            parents = [base.__name__ for base in shared if own_fields(base)]
            yield row(table, f"`{name}`", made, after=parents[:1])
    for field, owner in (("server_optimizer", "strategy"), ("staleness", "strategy"), ("schedule", "client")):
        for made in nested(field, (entry.load() for entry in plugins(owner))):
            yield row(f"{owner}.{field}", f"`{made.kind}`", made)
    yield row("client.curriculum", "", SampleCurriculum)
    for made in nested("pacing", [SampleCurriculum]):
        yield row("client.curriculum.pacing", f"`{made.kind}`", made)
    yield row("client.curriculum.expert", "", Expert)
    for made in nested("growth", [Defence]):
        yield row("client.adversarial.growth", f"`{made.kind}`", made)
    for table, made in (("evaluation", configuration.Evaluation), ("stopping", configuration.Stopping)):
        yield row(table, "", made)
    yield row("devices", "", Devices)
    for field in ("compute", "availability"):
        for made in nested(field, [Devices]):
            yield row(f"devices.{field}", f"`{made.kind}`", made)
    for field, made in (("bandwidth", Bandwidth), ("failure", Failure)):
        yield row(f"devices.{field}", "", made)
    yield row("engine", "", configuration.EngineOptions)


def plugins(table: str) -> Iterable[Any]:
    return registry.names(dict(SECTIONS)[table]).values()


def nested(field: str, owners: Iterable[type]) -> list[Any]:
    """The option classes that a field with several kinds takes."""
    found: dict[str, Any] = {}
    for owner in owners:
        hint = typing.get_type_hints(owner).get(field)
        found |= {made.kind: made for made in typing.get_args(hint) if hasattr(made, "kind")}
    return list(found.values())


def own_fields(made: type) -> list[dataclasses.Field[Any]]:
    declared = inspect.get_annotations(made)
    return [field for field in dataclasses.fields(made) if field.name in declared]


def row(table: str, kind: str, made: type, *, leave: tuple[str, ...] = (), after: Iterable[str] = ()) -> str:
    options = [f"those of *{name}*" for name in after]
    options += [shown(field) for field in own_fields(made) if field.name not in leave]
    heading = f"`[{table}]`" if table else "(top)"
    return f"| {heading} | {kind} | {', '.join(options) or 'none'} | {notes(made)} |"


def notes(made: type) -> str:
    """The first sentence of the docstring, and what it says of the options, from the first `name:` on.

    A plug-in that is alone in its file is introduced by the file's first sentence.
    """
    text = made.__doc__ or ""
    names = "|".join(field.name for field in own_fields(made)) or "-"
    options = re.search(rf"\b(?:{names})(?:,\s+(?:or\s+)?(?:{names}))*:", text)
    cut = len(text) if options is None else options.start()
    parts = [sentence(text[:cut]), " ".join(text[cut:].split())]
    if [plugin.__module__ for plugin in installed()].count(made.__module__) == 1:
        parts.insert(0, sentence(sys.modules[made.__module__].__doc__ or ""))
    return " ".join(filter(None, parts)).replace("|", "\\|")


def sentence(text: str) -> str:
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", paragraph, maxsplit=1)[0]


@cache
def installed() -> list[type]:
    """The plug-ins of fedsim itself."""
    ours = (entry for _, group in SECTIONS for entry in registry.names(group).values())
    return [entry.load() for entry in ours if entry.dist is None or entry.dist.name == "fedsim"]


def shown(field: dataclasses.Field[Any]) -> str:
    """A name with its default as TOML has it; a bare name must be given or is off by default."""
    default = field.default
    if default is dataclasses.MISSING:
        return f"**`{field.name}`**"
    if default is None:
        return f"`{field.name}`"
    value = getattr(default, "kind", default)
    written = {bool: str(value).lower(), str: f'"{value}"', tuple: str(list(value)) if isinstance(value, tuple) else ""}
    return f"`{field.name} = {written.get(type(value), value)}`"
