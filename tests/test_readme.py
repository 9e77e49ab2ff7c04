"""The README and the pages say what is so: snippets run, commands work, the reference is the one of the code.

The README's Python blocks run one after the other in one process, warnings being errors; a block whose first line is a
comment with a file's name is written to that file. `fedsim` lines of console blocks run in the same folder as they
stand, but for two rounds each (`--set rounds=2`) and the data folder, where one is at hand: one of each command in a
process of its own, the others in this one, for each process would import PyTorch. Other lines (pip, flwr) are not run
here. What a tutorial says is done in its order: files written, commands carried out in this process, pytest and Python
in others.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedsim
from fedsim.cli import reference
from fedsim.cli.main import app

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
REFERENCE = ROOT / "docs" / "reference.md"
BEGIN, END = "<!-- reference: begin -->", "<!-- reference: end -->"
RENEW = "FEDSIM_RENEW_REFERENCE"
TUTORIALS = ("write_a_strategy.md", "from_flower.md")
FILE = re.compile(r"# (\S+\.(?:py|toml))\b")
"""The first line of a block that is a file."""


def fences(page: Path) -> list[tuple[str, str]]:
    """The blocks of a page, in its order: language and text."""
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(block[1], block[2]) for block in found]


def blocks(language: str) -> list[str]:
    return [text for found, text in fences(README) if found == language]


def commands() -> list[str]:
    lines = [line.partition("   #")[0].strip() for block in blocks("console") for line in block.splitlines()]
    return [line for line in lines if line.startswith("fedsim ")]


def in_short(line: str) -> list[str]:
    """The words of a command; an experiment's are for two rounds."""
    words = shlex.split(line)
    return [*words, "--set", "rounds=2"] if words[:2] in (["fedsim", "run"], ["fedsim", "sweep"]) else words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the checkout is for a reader: the experiments, and the files that the README has them write."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    for block in blocks("python") + blocks("toml"):
        head = FILE.match(block)
        if head is not None:
            (folder / head[1]).write_text(block, encoding="utf-8")
    return folder


def execute(arguments: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=place, capture_output=True, text=True, timeout=240, check=False)


def test_python_blocks_run(place: Path) -> None:
    found = blocks("python")
    assert len(found) >= 3
    # Warnings are errors once the libraries are in: flwr-datasets and its friends warn of each other when imported.
    prelude = "import warnings, fedsim.running.runner, sklearn.datasets\nwarnings.simplefilter('error')\n"
    script = prelude + "\n".join(found)
    done = execute([sys.executable, "-c", script], place)
    assert done.returncode == 0, done.stderr


def test_commands_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, since later ones compare what earlier ones left."""
    monkeypatch.chdir(place)
    lines, folder, seen = commands(), os.environ.get("FEDSIM_DATA", ""), set[str]()
    assert len(lines) >= 7
    for line in lines:
        words = in_short(line)
        if "--data-dir" in words:
            if not Path(folder or "nowhere").is_dir():
                continue
            words[words.index("--data-dir") + 1] = folder
        if words[1] in seen:
            follow(words, place)
        else:
            done = execute([sys.executable, "-m", *words], place)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            assert done.stdout, line
        seen.add(words[1])


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


@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_can_be_followed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for language, text in fences(ROOT / "docs" / page):
        head = FILE.match(text)
        if head is not None:
            (tmp_path / head[1]).write_text(text, encoding="utf-8")
        elif language == "console":
            for line in text.splitlines():
                follow(in_short(line), tmp_path)
        else:
            assert language == "python", text
            done = execute([sys.executable, "-c", text], tmp_path)
            assert done.returncode == 0, f"{text}\n{done.stderr}"


def follow(words: list[str], place: Path) -> None:
    """Carry out a command, of `fedsim` in this process."""
    if words[0] == "fedsim":
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{words}\n{result.output}"
        assert result.stdout, words
    else:
        assert words[0] == "pytest", words
        done = execute([sys.executable, "-m", *words], place)
        assert done.returncode == 0, f"{words}\n{done.stdout}"


@pytest.mark.parametrize("page", [README, *((ROOT / "docs" / page) for page in TUTORIALS)], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_leads_to_the_tutorials() -> None:
    text = README.read_text(encoding="utf-8")
    assert [page for page in TUTORIALS if f"](docs/{page})" not in text] == []


def test_reference_is_that_of_the_code() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = "\n".join([before + BEGIN, "", *reference.markdown(), "", END + after])
    if os.environ.get(RENEW):
        REFERENCE.write_text(wanted, encoding="utf-8")
    assert text == wanted, (
        f"options have changed: run {RENEW}=1 pytest tests/test_readme.py, read the change, commit it"
    )


def test_lines_of_the_reference_are_short() -> None:
    """An option a line, which a reader sees whole beside its neighbours."""
    lines = REFERENCE.read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 350
