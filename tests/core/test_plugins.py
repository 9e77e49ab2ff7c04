"""Plug-ins: by entry point, by module, by file; and what is said when there is none."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from functools import cache

import forks
import pytest

import fedsim
from fedsim.core import plugins
from fedsim.core.errors import InputError

PLUGIN = '''
from fedsim.core.options import PositiveFloat, options

@options
class Mine:
    """A device of nobody's."""

    factor: PositiveFloat = 2.0

    def start(self, census, streams, data_dir):
        return None
'''


def test_every_entry_point_can_be_loaded():
    for group in plugins.GROUPS:
        assert plugins.names(group)
        for name in plugins.names(group):
            assert isinstance(plugins.find(group, name, "kind"), type)


def test_a_second_lookup_parses_no_metadata(monkeypatch):
    assert plugins.find("strategies", "fedavg", "kind").__name__ == "FedAvg"
    monkeypatch.delattr(importlib.metadata.Distribution, "metadata")
    assert plugins.find("strategies", "fedprox", "kind").__name__ == "FedProx"
    fresh(monkeypatch)
    with pytest.raises(AttributeError, match="metadata"):
        plugins.find("strategies", "fedavg", "kind")


@pytest.mark.parametrize(("old", "new"), [("attack", "evasion"), ("synthetic", "benchmark")])
def test_a_kind_that_had_another_name_is_told_the_new_one(old, new):
    with pytest.raises(InputError, match=f"^problem.kind = {old}: is called {new} now$"):
        plugins.find("problems", old, "problem.kind")
    assert plugins.find("problems", new, "problem.kind")


def test_a_plug_in_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    made = plugins.make("speeds", {"kind": "./mine.py:Mine", "factor": 3.0}, "devices.compute")
    assert (type(made).__name__, made.factor) == ("Mine", 3.0)


def test_files_of_the_same_name_are_two_plug_ins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, factor in (("first", "2.0"), ("second", "4.0")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "random.py").write_text(PLUGIN.replace("2.0", factor))
    found = [plugins.make("speeds", f"./{folder}/random.py:Mine", "d").factor for folder in ("first", "second")]
    assert found == [2.0, 4.0]


def test_a_file_is_executed_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, note = tmp_path / "mine.py", tmp_path / "executed"
    text = PLUGIN + f"\nwith open({str(note)!r}, 'a') as note:\n    note.write('x')\n"
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file.write_text(text)
    os.utime(file, ns=(10**18, 10**18))
    first, second = (plugins.find("speeds", "./mine.py:Mine", "d") for _ in range(2))
    assert first is second
    assert note.read_text() == "x"
    # Of the same length and within the same second: a compiled copy of the first would pass for it.
    file.write_text(text.replace("2.0", "4.0"))
    os.utime(file, ns=(10**18 + 10**6, 10**18 + 10**6))
    assert plugins.make("speeds", "./mine.py:Mine", "d").factor == 4.0
    assert note.read_text() == "xx"
    assert not (tmp_path / "__pycache__").exists()


def test_a_file_is_executed_once_for_a_run_with_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    note = tmp_path / "executed"
    (tmp_path / "mine.py").write_text(
        f"from strategies.fedavg import FedAvg as Mine\nwith open({str(note)!r}, 'a') as note:\n    note.write('x')\n"
    )
    (tmp_path / "mine.toml").write_text("rounds = 1\n")
    fedsim.load("mine.toml", overrides=["strategy.kind=./mine.py:Mine", "strategy.server_lr=0.5"])
    assert note.read_text() == "x"


def test_a_file_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fails.py").write_text("raise RuntimeError('halfway')")
    before = set(sys.modules)
    for _ in range(2):
        with pytest.raises(InputError, match=r"^d = \./fails\.py:Mine: /.*fails\.py, line 1: RuntimeError: halfway$"):
            plugins.find("speeds", "./fails.py:Mine", "d")
    assert set(sys.modules) == before


def test_a_file_that_is_not_python_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("x = 1\ndef (:\n")
    with pytest.raises(InputError, match=r"broken\.py, line 2: SyntaxError: invalid syntax"):
        plugins.make("strategies", "./broken.py:Mine", "strategy")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = nowhere", r"line 1: NameError: name 'nowhere' is not defined"),
        ("import sys\nsys.exit(3)", r"line 2: SystemExit: 3"),
        ("import numpy as np\nnp.zeros(3).reshape(2, 2)", r"line 2: ValueError: cannot reshape"),
        ("from fedsim.server import Avering", r"line 1: ImportError: cannot import name 'Avering'"),
        ("from beside_it import f\n\nf()", r"beside_it\.py, line 2: ZeroDivisionError"),
        (PLUGIN.replace("factor: PositiveFloat", "factor: Flaot"), r"line \d+: NameError: name 'Flaot' is not defined"),
        (
            "from __future__ import annotations\n" + PLUGIN.replace("factor: PositiveFloat", "factor: PositiveFlaot"),
            r"mine\.py, class Mine: option factor is a PositiveFlaot, and PositiveFlaot is not defined; import it",
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_its_place(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside_it.py").write_text("def f():\n    return 1 / 0\n")
    (tmp_path / "mine.py").write_text(text)
    for call in (plugins.make, plugins.option_class):
        with pytest.raises(InputError, match=words) as caught:
            call("speeds", "./mine.py:Mine", "devices.compute")
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_default_and_a_property_are_held_to_what_the_option_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN.replace("= 2.0", "= 'two'"))
    with pytest.raises(InputError, match=r"^devices\.compute\.factor = two: input should be a valid number$"):
        plugins.make("speeds", "./mine.py:Mine", "devices.compute")
    (tmp_path / "own.py").write_text(
        "from clients.sgd import Sgd\nfrom fedsim.core.options import options\n\n\n@options\nclass Mine(Sgd):\n"
        "    @property\n    def batch_size(self):\n        return 3\n"
    )
    with pytest.raises(InputError, match=r"Mine = batch_size: is an option of Sgd; call the method otherwise$"):
        plugins.make("clients", "./own.py:Mine", "client")


def test_a_class_whose_options_cannot_be_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare.py").write_text(PLUGIN.replace("@options", ""))
    with pytest.raises(InputError, match="put @options above the class"):
        plugins.make("strategies", "./bare.py:Mine", "strategy")


def test_a_plug_in_from_a_module():
    made = plugins.make("strategies", "strategies.fedavg:FedAvg", "strategy")
    assert made == plugins.make("strategies", "fedavg", "strategy")


OPTIONS = {"clients.sgd:Sgd": {"epochs": 1}}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nothing", "not one of the installed strategies"),
        ("fedavgg", "term; did you mean fedavg?"),
        ("ditto", "term; it is one of the clients"),
        ("adam", "term; it is one of the optimizers and of the server_optimizers"),
        ("./absent.py:Mine", "there is no file /"),
        ("./my_strategy.py", "name the class in it, too: ./my_strategy.py:Class"),
        ("absent_module:Mine", "there is no module absent_module"),
        ("fedsim.absent:Mine", "there is no module fedsim.absent"),
        (":Mine", "write module:Class"),
        ("..fedavg:Mine", "write module:Class"),
        ("a b:Mine", "write module:Class"),
        ("clients.sgd:Sgd", "it has no down, init, ask, tell, which all strategies have"),
        ("strategies.fedavg:Absent", "has no Absent"),
        ("fedsim.cli.main:main", "is not a class"),
    ],
)
def test_what_is_not_there_is_one_line(kind, words):
    with pytest.raises(InputError, match=r"^strategy\.kind = ") as caught:
        plugins.make("strategies", {"kind": kind, **OPTIONS.get(kind, {})}, "strategy")
    assert words in str(caught.value)


def test_a_bad_option_is_named_with_its_table():
    with pytest.raises(InputError, match=r"^strategy\.server_lr = -1.0: "):
        plugins.make("strategies", {"kind": "fedavg", "server_lr": -1.0}, "strategy")


def test_a_module_that_a_plug_in_wants_is_not_said_to_be_the_plug_in(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "wants_more.py").write_text("import absent_module\n")
    with pytest.raises(InputError, match=r"wants_more\.py, line 1: ModuleNotFoundError: .*absent_module"):
        plugins.find("strategies", "wants_more:Mine", "strategy.kind")


def test_one_name_of_two_packages_is_ambiguous(tmp_path, monkeypatch):
    metadata = tmp_path / "rival-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[fedsim.strategies]\nfedavg = rival:FedAvg\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    fresh(monkeypatch)
    with pytest.raises(InputError, match="several packages") as caught:
        plugins.find("strategies", "fedavg", "strategy.kind")
    assert "strategies.fedavg:FedAvg" in str(caught.value)
    assert "rival:FedAvg" in str(caught.value)
    assert plugins.find("strategies", "fedprox", "strategy.kind").__name__ == "FedProx"


def test_a_prefix_names_a_resolver(tmp_path, monkeypatch):
    metadata = tmp_path / "elsewhere-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[fedsim.resolvers]\nelse = elsewhere_of:resolve\n")
    (tmp_path / "elsewhere_of.py").write_text("def resolve(*asked):\n    return type('Found', (), {'asked': asked})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    fresh(monkeypatch)
    found = plugins.find("clients", "else:where:Class", "client.kind")
    assert found.asked == ("clients", "else:where:Class", "client.kind")
    with pytest.raises(InputError, match="there is no module other"):
        plugins.find("clients", "other:Class", "client.kind")


def fresh(monkeypatch):
    """Look for entry points anew within this test, and again after it."""
    monkeypatch.setattr(plugins, "_installed", cache(plugins._installed.__wrapped__))


HIDING = {"strategies/__init__.py": "", "strategies/helpers.py": "", "clients/notes.txt": "", "experiments.py": ""}
"""A user's own folders, one of them a package, one only a folder; and a file."""


@pytest.fixture
def crowded(tmp_path):
    """A folder whose own things have the names of our packages, and an experiment of ten clients."""
    for name, text in HIDING.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "tiny.toml").write_text(
        'rounds = 1\n[partition]\nkind = "iid"\nclients = 10\n[strategy]\nkind = "scaffold"\n'
        '[client]\nkind = "scaffold"\nsteps = 1\n'
    )
    return tmp_path


def python(folder, *arguments):
    environment = os.environ | {"PYTHONSAFEPATH": ""}  # the current folder comes first on the path
    done = forks.python(*arguments, cwd=folder, env=environment)
    return done.returncode, done.stdout, done.stderr


def test_it_runs_in_a_folder_with_packages_of_the_same_names(crowded):
    code, said, errors = python(crowded, "-m", "fedsim", "run", "tiny.toml")
    assert (code, errors) == (0, "")
    assert said.startswith("finished: 1 rounds")


def test_what_was_imported_before_ours_is_named(crowded):
    code, _, errors = python(crowded, "-c", "import strategies.helpers, fedsim; fedsim.load('tiny.toml')")
    assert code == 1
    assert f"{crowded / 'strategies'} hides the installed package of that name; rename it" in errors


def test_a_plug_in_that_builds_on_a_hidden_one_is_told_which_folder_hides_it(crowded):
    (crowded / "mine.py").write_text("from strategies.fedavg import FedAvg as Mine\n")
    code, _, errors = python(crowded, "-m", "fedsim", "run", "tiny.toml", "--set", "strategy.kind=./mine.py:Mine")
    assert code == 2
    hidden = crowded / "strategies"
    assert (
        errors
        == f"fedsim: strategy.kind = ./mine.py:Mine: {hidden} hides the installed package of that name; rename it\n"
    )


def test_a_plugin_file_imports_what_lies_beside_it(tmp_path):
    before = list(sys.path)
    (tmp_path / "beside_the_plugin.py").write_text("FACTOR = 3.0\n")
    (tmp_path / "own.py").write_text(
        "from beside_the_plugin import FACTOR\nfrom fedsim.core.options import options\n\n\n"
        "@options\nclass Own:\n    factor: float = FACTOR\n"
    )
    assert plugins.find("strategies", f"{tmp_path / 'own.py'}:Own", "strategy.kind")().factor == 3.0
    assert sys.path == before
    del sys.modules["beside_the_plugin"]
