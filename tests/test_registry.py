"""Plug-ins: by entry point, by module, by file; and what is said when there is none."""

from __future__ import annotations

import pytest

from fedsim import registry
from fedsim.errors import InputError

PLUGIN = '''
from fedsim.options import Positive, options

@options
class Mine:
    """A partition of nothing."""

    factor: Positive = 2.0
'''


def test_every_entry_point_can_be_loaded():
    for group in registry.GROUPS:
        assert registry.names(group)
        for name in registry.names(group):
            assert isinstance(registry.find(group, name, "kind"), type)


def test_a_plug_in_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    made = registry.make("strategies", {"kind": "./mine.py:Mine", "factor": 3.0}, "strategy")
    assert (type(made).__name__, made.factor) == ("Mine", 3.0)


def test_files_of_the_same_name_are_two_plug_ins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, factor in (("first", "2.0"), ("second", "4.0")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "random.py").write_text(PLUGIN.replace("2.0", factor))
    found = [registry.make("strategies", f"./{folder}/random.py:Mine", "s").factor for folder in ("first", "second")]
    assert found == [2.0, 4.0]


def test_a_file_that_is_not_python_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("x = 1\ndef (:\n")
    with pytest.raises(InputError, match="line 2: invalid syntax"):
        registry.make("strategies", "./broken.py:Mine", "strategy")


def test_a_class_whose_options_cannot_be_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare.py").write_text(PLUGIN.replace("@options", ""))
    with pytest.raises(InputError, match="put @options above the class"):
        registry.make("strategies", "./bare.py:Mine", "strategy")


def test_a_plug_in_from_a_module():
    made = registry.make("strategies", "strategies.fedavg:FedAvg", "strategy")
    assert made == registry.make("strategies", "fedavg", "strategy")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nothing", "not one of the installed strategies"),
        ("./absent.py:Mine", "there is no file"),
        ("absent_module:Mine", "there is no module"),
        ("strategies.fedavg:Absent", "has no Absent"),
        ("fedsim.cli:main", "is not a class"),
    ],
)
def test_what_is_not_there_is_one_line(kind, words):
    with pytest.raises(InputError, match=r"^strategy\.kind = ") as caught:
        registry.make("strategies", {"kind": kind}, "strategy")
    assert words in str(caught.value)


def test_a_bad_option_is_named_with_its_table():
    with pytest.raises(InputError, match=r"^strategy\.server_lr = -1.0: "):
        registry.make("strategies", {"kind": "fedavg", "server_lr": -1.0}, "strategy")


def test_a_folder_that_hides_a_package_is_named(tmp_path, monkeypatch):
    """A user's own folder `strategies` before ours on the path: the import fails, and the message says where it is."""
    import sys

    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "strategies"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match="hides the installed package") as caught:
        registry.find("strategies", "fedavg", "strategy.kind")
    assert str(tmp_path / "strategies") in str(caught.value)
    for name in [name for name in sys.modules if name.partition(".")[0] == "strategies"]:
        monkeypatch.delitem(sys.modules, name)
