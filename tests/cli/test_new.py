"""What `fedsim new` writes: it passes its own tests and the linter as it is, and overwrites nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from runpy import run_path

import forks
import pytest
import torch
from ruff import find_ruff_bin
from typer.testing import CliRunner

from fedsim.cli.main import app
from fedsim.cli.new import LONGEST, PROJECTS, SCAFFOLDS, scaffold
from fedsim.core.errors import InputError

pytestmark = pytest.mark.usefixtures("unpainted")

ROOT = Path(__file__).parents[2]
NAMES = {
    "strategy": ("drift", "my_mean"),
    "client": ("frugal", "my_sgd"),
    "optimizer": ("powered", "my_optimizer"),
    "selector": ("rested", "my_selector"),
    "aggregator": ("shorter", "my_aggregator"),
    "transform": ("rounded", "my_transform"),
    "dataset": ("rings", "my_dataset"),
    "loss": ("bounded", "my_loss"),
    "measure": ("rarest", "my_measure"),
    "model": ("curved", "my_model"),
    "tracker": ("written", "my_tracker"),
    "experiment": ("trial", "my_trial"),
    "project": ("drifting", "my_package"),
    "flower": ("halfway", "my_flower"),
    "app": ("gentle", "my_app"),
}
"""Of each kind a short name, and one of two words."""
FILES = tuple(kind for kind in SCAFFOLDS if kind not in PROJECTS)
FLAGS = {"flower": ("strategy", "--flower"), "app": ("project", "--flower-strategy")}
"""What is typed for the scaffolds that are no kind of their own."""


def new(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["new", *arguments])
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def words(kind: str, name: str) -> list[str]:
    """What is typed for a scaffold."""
    typed, *flags = FLAGS.get(kind, (kind,))
    return [typed, name, *flags]


def made(kind: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scaffold in a folder; where its tests are to be run."""
    monkeypatch.chdir(folder)
    new(*words(kind, name))
    return folder / name if kind in PROJECTS else folder


def python(folder: Path, *arguments: str, python: str | None = None, path: str = "") -> str:
    """What a process says that comes to a good end. python: an interpreter, by default a fork of this environment's."""
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    if python is None:
        done = forks.python(*arguments, cwd=folder, env=environment)
    else:
        command = [python, *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def passed(folder: Path, path: str) -> None:
    """Run all tests of a folder."""
    said = python(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", path=path)
    assert re.search(r"^\d+ passed", said, re.MULTILINE), said


def installed(project: Path, place: Path) -> str:
    """A path on which a project is as if installed: its entry points, and its code where it is."""
    described = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    metadata = place / f"{described['name']}-{described['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {described['name']}\nVersion: {described['version']}\n"
    )
    lines = []
    for group, entries in described["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return os.pathsep.join((str(place), str(project)))


def test_what_is_written_passes_its_own_tests_and_its_experiment_runs(tmp_path, monkeypatch):
    for kind in FILES:
        made(kind, NAMES[kind][1], tmp_path, monkeypatch)
    passed(tmp_path, "")
    for kind in FILES:
        assert CliRunner().invoke(app, ["run", f"{NAMES[kind][1]}.toml", "--set", "rounds=2"]).exit_code == 0
        assert (tmp_path / "runs" / f"{NAMES[kind][1]}-0" / "model.safetensors").exists()


def test_a_project_passes_its_own_tests_and_its_experiment_runs(tmp_path, monkeypatch):
    """Its experiment is one of its tests; it needs the entry point. Around it are folders called like our packages."""
    for name in ("strategies", "clients", "experiments"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    folder = made("project", "my_package", tmp_path, monkeypatch)
    path = installed(folder, tmp_path / "site")
    passed(folder, path)
    assert tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"] == ["fedsim-lab"]
    said = python(tmp_path, "-m", "fedsim", "run", "my_package/my_package.toml", "--set", "rounds=2", path=path)
    assert said.startswith("finished: 2 rounds")


def test_an_app_passes_its_own_tests_and_runs_as_a_folder_of_flowers(tmp_path, monkeypatch):
    """What it has beside a project; the rest of it is one. In this process, which has PyTorch."""
    alone, app_ = (scaffold(kind, "my_app") for kind in ("project", "app"))
    folder = made("app", "my_app", tmp_path, monkeypatch)
    monkeypatch.syspath_prepend(folder)
    tests = [test for name, test in run_path(folder / "tests" / "test_app.py").items() if name.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        test()
    assert "my_app" not in sys.modules
    differ = {"my_app/README.md", "my_app/pyproject.toml"}
    assert {path: text for path, text in alone.items() if path not in differ}.items() <= app_.items()
    theirs = tomllib.loads((folder / "pyproject.toml").read_text())
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9-]{,31}", theirs["project"]["name"]), "flwr run would refuse the app"
    assert theirs["tool"].pop("flwr")["app"]["components"]["serverapp"] == "my_app.server_app:app"
    assert theirs == tomllib.loads(alone["my_app/pyproject.toml"])
    told = CliRunner().invoke(
        app, ["flower", "run", "my_app", "--nodes", "2", "--run-config", "num-server-rounds=2 out='kept'"]
    )
    assert told.exit_code == 0, told.output
    assert (tmp_path / "kept" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", SCAFFOLDS)
def test_what_is_written_is_as_the_linter_wants_it(kind, tmp_path, monkeypatch):
    """Under this project's own settings; the longest name and a short one, which wrap lines differently."""
    for number, name in enumerate((NAMES[kind][0], "a" * LONGEST)):
        (tmp_path / str(number)).mkdir()
        folder = made(kind, name, tmp_path / str(number), monkeypatch)
        settings = () if kind in PROJECTS else ("--config", str(ROOT / "pyproject.toml"))
        for command in (("check",), ("format", "--check")):
            done = subprocess.run(
                [find_ruff_bin(), *command, "--no-cache", *settings, "."], cwd=folder, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_a_project_lints_as_this_one(tmp_path, monkeypatch):
    folder = made("project", "my_package", tmp_path, monkeypatch)
    theirs, ours = (tomllib.loads((place / "pyproject.toml").read_text())["tool"]["ruff"] for place in (folder, ROOT))
    assert theirs["lint"]["select"] == ours["lint"]["select"]
    assert sorted(theirs["lint"]["ignore"]) == sorted(ours["lint"]["ignore"])
    assert theirs["line-length"] == ours["line-length"]


@pytest.mark.parametrize("kind", SCAFFOLDS)
def test_text_is_for_every_system(kind):
    for path, text in scaffold(kind, NAMES[kind][1]).items():
        assert text.isascii()
        assert "\r" not in text
        assert "$" not in text
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
        assert not {"strategies", "clients", "experiments"} & {*Path(path).parts, Path(path).stem}


def test_files_are_written_with_plain_newlines(tmp_path, monkeypatch):
    folder = made("strategy", "my_mean", tmp_path, monkeypatch)
    for file in folder.iterdir():
        assert b"\r" not in file.read_bytes()


@pytest.mark.parametrize("kind", SCAFFOLDS)
def test_nothing_is_overwritten_unless_it_is_asked_for(kind, tmp_path, monkeypatch):
    name = NAMES[kind][1]
    folder = made(kind, name, tmp_path, monkeypatch)
    last = folder / f"{name}.toml"
    for file in folder.glob("*.*"):
        if file.is_file() and file != last:
            file.unlink()
    last.write_text("mine")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=rf"^name = {name}: .*exists; choose another name or pass --force"):
        new(*words(kind, name))
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    new(*words(kind, name), "--force")
    assert last.read_text().startswith(f"# {name}: ")


def test_it_says_what_it_wrote_and_what_to_do_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new("strategy", "my_mean").splitlines() == [
        "my_mean.py",
        "test_my_mean.py",
        "my_mean.toml",
        "next: pytest test_my_mean.py, fedsim run my_mean.toml",
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["strategy", "My"], "name = My: write up to 30 small letters"),
        (["strategy", "a-b"], "name = a-b: write up to 30 small letters"),
        (["strategy", "1st"], "name = 1st: write up to 30 small letters"),
        (["strategy", "../up"], "name = ../up: write up to 30 small letters"),
        (["strategy", "two__words"], "name = two__words: write up to 30 small letters"),
        (["strategy", "ä"], "name = ä: write up to 30 small letters"),
        (["strategy", "a" * (LONGEST + 1)], f"name = {'a' * (LONGEST + 1)}: write up to 30 small letters"),
        (["strategy", "random"], "name = random: is a module or a word of Python's already"),
        (["strategy", "lambda"], "name = lambda: is a module or a word of Python's already"),
        (["project", "torch"], "name = torch: is a module or a word of Python's already"),
        (["project", "strategies"], "name = strategies: is a module or a word of Python's already"),
        (["project", "tests"], "name = tests: pytest would take it for something of its own"),
        (["client", "test_me"], "name = test_me: pytest would take it for something of its own"),
        (["strategy", "none"], "name = none: None is needed for something else"),
        (["strategy", "tensor"], "name = tensor: Tensor is needed for something else"),
        (["client", "value_error"], "name = value_error: ValueError is needed for something else"),
        (["project", "fedavg"], "name = fedavg: fedavg is an installed strategy already"),
        (
            ["problem", "mine"],
            "kind = problem: name one of: strategy, client, optimizer, selector, aggregator, transform, dataset, ",
        ),
        (["client", "mine", "--flower"], "flower = True: only a strategy can be one of Flower's"),
        (["strategy", "mine", "--flower-strategy"], "flower-strategy = True: only a project has an app"),
        (["strategy", "mine", "--flower", "--flower-strategy"], "flower-strategy = True: only a project has an app"),
        (["project", "mine", "--flower", "--flower-strategy"], "flower = True: only a strategy can be one of Flower's"),
        (["project", "array_record", "--flower-strategy"], "name = array_record: ArrayRecord is needed"),
    ],
)
def test_what_cannot_be_begun_is_one_line(words, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        new(*words)
    assert str(caught.value).startswith(line)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_package").write_text("a file, where a folder is to be")
    with pytest.raises(InputError, match=r"^name = my_package: my_package exists"):
        new("project", "my_package")
    with pytest.raises(InputError, match=r"^name = my_package: .* cannot be written: "):
        new("project", "my_package", "--force")


def test_the_wheel_has_what_scaffolds_are_made_of():
    """Every file of a package folder is in it, unless git ignores it; so none may be ignored, and all are needed."""
    files = {path.name.removesuffix(".txt") for path in (ROOT / "fedsim" / "cli" / "templates").iterdir()}
    assert files == {file for files in SCAFFOLDS.values() for file in files.values()}
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["packages"] == ["fedsim", "fedsim_lab.py", "strategies", "clients", "experiments"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROJECTS)
def test_a_project_in_a_fresh_environment(kind, tmp_path, monkeypatch):
    """From a wheel of this project: what a reader does, beside folders that have the names of our packages.

    Dependencies are those of this environment; only the two projects are installed.
    """
    wheels, place = tmp_path / "wheels", tmp_path / "venv"
    python(ROOT, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(ROOT))
    venv.create(place, with_pip=True)
    fresh = str(place / "bin" / "python")
    for name in ("strategies", "clients", "experiments"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my_package"
    python(tmp_path, "-m", "pip", "install", "-q", "--no-deps", *map(str, wheels.glob("*.whl")), python=fresh)
    # Behind what is installed in it, so that fedsim is the wheel's; without the .pth files by which this is editable.
    packages = next(place.glob("lib/python*/site-packages"))
    ours = {str(Path(file).parent.parent) for file in (pytest.__file__, torch.__file__)}
    (packages / "dependencies.pth").write_text("\n".join(ours))
    assert str(place) in python(tmp_path, "-P", "-c", "import fedsim; print(fedsim.__file__)", python=fresh)
    python(tmp_path, "-m", "fedsim", "new", *words(kind, "my_package"), python=fresh)
    python(folder, "-m", "pip", "install", "-q", "--no-deps", "-e", ".", python=fresh)
    python(folder, "-m", "pytest", "-q", python=fresh)
    python(folder, "-m", "ruff", "check", ".", python=fresh)
    said = python(tmp_path, "-m", "fedsim", "run", "my_package/my_package.toml", "--set", "rounds=2", python=fresh)
    assert said.startswith("finished: 2 rounds")
    assert python(tmp_path, "-m", "fedsim", "describe", "strategy", "my_package", python=fresh).endswith(
        "strategy.py\n"
    )
