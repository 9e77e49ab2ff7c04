"""The README and the pages say what is so: snippets run, commands work, links lead somewhere, two pages are the code's.

A page is followed in its order, in a folder that has the experiments: a block whose first line is a comment with a
file's name is written to that file, `fedsim`, `pytest` and `python` lines of console blocks are carried out (a run for
two rounds, with the data folder where one is at hand), tables of an experiment are checked. Then the page's other
Python blocks run, one after the other in one process, warnings being errors. Other lines (pip, flwr) are not run here.
The README's first command is a new process, as it is a reader's; the others run in this one. Tests of what `fedsim new`
has written are run once a page has changed it, for `test_new` runs those of all that is written as it is.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import forks
import pytest
import typer
from typer.cli import get_docs_for_click
from typer.testing import CliRunner

import fedsim
from fedsim.cli import reference
from fedsim.cli.main import app
from fedsim.client import Optimizer
from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.flower import AppOptions, as_flower_strategy
from fedsim.flower.serving.strategy import needs
from fedsim.zeroth_order.search import GIVEN

pytestmark = pytest.mark.usefixtures("unpainted")

ROOT = Path(__file__).parent.parent
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
NOT_RUN = {"commands.md", "decisions.md", "flower.md", "reference.md"}
"""Pages whose blocks are extracts."""
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
RENEW = "FEDSIM_RENEW"
UNPAINTED = """from matplotlib.figure import Figure
Figure.savefig = lambda _, place, **__: place.write(b"a picture")
"""
"""As of the fixture, in a page's process."""
FILE = re.compile(r"# (\S+\.(?:py|toml))\b")
"""The first line of a block that is a file."""


def fences(page: Path) -> list[tuple[str, str]]:
    """The blocks of a page, in its order: language and text."""
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(block[1], block[2]) for block in found]


def commands(block: str) -> Iterator[list[str]]:
    """The commands of a console block, in words; runs are for two rounds, searches of two trials, data of here."""
    data = os.environ.get("FEDSIM_DATA", "")
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] not in ("fedsim", "pytest", "python") or "&&" in words:
            continue
        if "--data-dir" in words:
            if not Path(data or "nowhere").is_dir():
                continue
            words[words.index("--data-dir") + 1] = data
        searches = words[:2] == ["fedsim", "tune"]
        short = searches or words[:2] in (["fedsim", "run"], ["fedsim", "sweep"])
        yield [*words, *["--set", "rounds=2"] * short, *["--trials", "2"] * searches]


def execute(arguments: list[str], place: Path) -> str:
    """What a process of Python says that comes to a good end."""
    done = forks.python(*arguments, cwd=place)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def follow(words: list[str], place: Path, *, anew: bool) -> None:
    """Carry out a command. anew: in a new process."""
    if anew:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        said = done.stdout
    elif words[0] != "fedsim":
        said = execute(words[1:] if words[0] == "python" else ["-m", *words], place)
    else:
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{words}\n{result.output}"
        said = result.stdout
    assert said, words


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in NOT_RUN], ids=lambda page: page.stem)
def test_a_page_can_be_followed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    scripts, unchanged, followed = list[str](), set[str](), 0
    for language, text in fences(page):
        head = FILE.match(text)
        if head is not None:
            (tmp_path / head[1]).write_text(text, encoding="utf-8")
            unchanged.discard(f"test_{head[1]}")
        elif language == "console":
            for words in commands(text):
                if words[0] == "pytest" and unchanged.intersection(words):
                    continue
                if words[:2] == ["fedsim", "new"] and len(words) == 4:
                    unchanged.add(f"test_{words[3]}.py")
                follow(words, tmp_path, anew=page == README and not followed)
                followed += 1
        elif language == "toml":
            fedsim.experiment(**tomllib.loads(text))
        elif language == "python":
            scripts.append(text)
    if scripts:
        # Warnings are errors once the libraries are in, which warn of each other when they are imported.
        script, libraries = "\n".join(scripts), ["warnings", "fedsim.running.runner", "sklearn.datasets"]
        libraries += ["flwr.app"] if "flwr" in script else []
        prelude = f"import {', '.join(libraries)}\n{UNPAINTED}warnings.simplefilter('error')\n"
        (tmp_path / "page.py").write_text(prelude + script, encoding="utf-8")
        execute(["page.py"], tmp_path)


@pytest.mark.slow
def test_the_first_page_can_be_followed_from_a_clone(tmp_path: Path) -> None:
    """As it stands, from an empty folder, but for the address and the server that the last line starts."""
    text = next(text for language, text in fences(DOCS / "index.md") if language == "console")
    *lines, last = text.splitlines()
    assert len(lines) < 10
    assert last == "tensorboard --logdir runs"
    script = "\n".join(["set -e", *lines, "tensorboard --version", "test -s report.html"]).replace(
        "ADDRESS", str(ROOT), 1
    )
    told = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scaffold is better than fedavg" in done.stdout


def test_the_experiment_of_the_readme_is_the_one_that_its_first_command_runs() -> None:
    first = next(text for language, text in fences(README) if language == "toml")
    assert first == (ROOT / "experiments" / "digits_fedavg.toml").read_text(encoding="utf-8")


def test_first_commands_are_those_that_ci_runs() -> None:
    lines = [line for language, text in fences(README) if language == "console" for line in text.splitlines()]
    assert lines[:2] == [
        "pip install -c constraints.txt -e . && fedsim run experiments/digits_fedavg.toml",
        "pip install -c constraints.txt -e '.[dev]' && pytest",
    ]
    assert lines[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The places of a page that a link may lead to."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, place = target.partition("#")
        to = page.parent / path if path else page
        assert to.exists(), target
        assert not place or place in anchors(to), target


def test_the_index_leads_to_all_pages_and_the_readme_to_the_index() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if page.name != "index.md" and f"]({page.name})" not in index] == []
    assert "](docs/index.md)" in README.read_text(encoding="utf-8")


def of_the_commands() -> str:
    """The page of commands, below its own first lines."""
    command = typer.main.get_command(app)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command), name="fedsim")
    return page[page.index("**Usage**") :]


def of_strategies_in_apps() -> str:
    """Which strategies need what in a Flower app: a row for each need."""
    found: dict[str, list[str]] = {}
    for kind in sorted(plugins.ours("strategies")):
        try:
            need = " and ".join(needs(as_flower_strategy(kind).strategy).values()) or "nothing: any app will do"
        except InputError as error:
            searcher = "fedsim.flower.local.searcher, and the argument `client=`"
            need = searcher if "client=" in error.remedy else f"refused: {error.remedy}"
            need = "nothing, but the server the arguments `model=` and `public=`" if error.option == "model" else need
        found.setdefault(re.sub(r"fedsim\.[\w.]+\w", r"`\g<0>`", need), []).append(f"`{kind}`")
    rows = [f"| {need} | {', '.join(kinds)} |" for need, kinds in sorted(found.items(), key=lambda row: -len(row[1]))]
    return "\n".join(["| the app needs | strategies |", "|---|---|", *rows])


def of_optimizers() -> str:
    """What each optimizer is, and what it takes by default: a row each."""
    lines = ["| rule | is | lr | memory | gradients a step | goes as |", "|---|---|---|---|---|---|"]
    for kind in sorted(plugins.ours("optimizers")):
        made = plugins.find("optimizers", kind, "optimizer")
        rule: Optimizer = made()
        inside = reference.summary(made).removesuffix(".")
        places = ["server"] * (not rule.needs) + ["search"] * (rule.needs <= GIVEN)
        passes = f", and {rule.passes:.2g} passes a round" if rule.passes else ""
        lines.append(
            f"| `{kind}` | {reference.escaped(inside)} | {rule.usual:g} | {rule.vectors:g} | {rule.effort:.2g}{passes} "
            f"| {', '.join(places)} |"
        )
    return "\n".join(lines)


def of_app_options() -> str:
    """The options of a strategy in a Flower app."""
    return "\n".join(reference.table(reference.options_of(AppOptions)))


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("reference.md", [lambda: "\n".join(reference.markdown())]),
        ("commands.md", [of_the_commands]),
        ("optimizers.md", [of_optimizers]),
        ("flower_strategies.md", [of_app_options, of_strategies_in_apps]),
    ],
    ids=["reference", "commands", "optimizers", "flower_strategies"],
)
def test_a_generated_page_is_that_of_the_code(name, made) -> None:
    page = DOCS / name
    text = page.read_text(encoding="utf-8")
    first, *pieces = text.split(BEGIN)
    wanted = first
    for make, piece in zip(made, pieces, strict=True):
        wanted += "\n".join([BEGIN, "", make(), "", END + piece.partition(END)[2]])
    if os.environ.get(RENEW):
        page.write_text(wanted, encoding="utf-8")
    assert text == wanted, f"the code has changed: run {RENEW}=1 pytest tests/test_pages.py, read the change, commit it"


def test_lines_of_the_reference_are_short() -> None:
    """An option a line, which a reader sees whole beside its neighbours."""
    lines = (DOCS / "reference.md").read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 350
