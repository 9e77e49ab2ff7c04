"""What is kept is named by all that it comes from, source included; where that cannot be read it is made each time."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from fedsim.core.cache import digest, kept, sources

CPU = torch.device("cpu")


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Three modules with a file each: a class, another that inherits from it, and something else."""

    def module(name, text, **names):
        made = ModuleType(name)
        made.__file__ = str(tmp_path / f"{name}.py")
        (tmp_path / f"{name}.py").write_text(text)
        exec(text, vars(made) | names, vars(made))
        monkeypatch.setitem(sys.modules, name, made)
        return made

    first = module("first", "class Base: ...\n")
    second = module("second", "class Kind(Base): ...\n", Base=first.Base, __name__="second")
    first.Base.__module__, second.Kind.__module__ = "first", "second"
    return first, second, module("third", "value = 1\n")


def said(written):
    return sources([written[2]], [written[1].Kind])


@pytest.mark.parametrize("number", range(3))
def test_a_changed_file_is_noticed(written, number, tmp_path):
    before = said(written)
    assert said(written) == before
    (tmp_path / f"{written[number].__name__}.py").write_text("# another\n")
    assert said(written) != before


@pytest.mark.parametrize("number", range(3))
def test_without_its_file_nothing_is_said(written, number, tmp_path, monkeypatch):
    (tmp_path / f"{written[number].__name__}.py").unlink()
    assert said(written) is None
    monkeypatch.delattr(written[number], "__file__")
    assert said(written) is None
    assert digest([], CPU, [written[2]], [written[1].Kind], []) is None


def test_a_class_of_no_module_is_not_kept(written, monkeypatch):
    monkeypatch.delitem(sys.modules, "first")
    assert said(written) is None


def test_what_has_no_key_is_made_each_time(tmp_path):
    made = iter(range(9))

    def make():
        return torch.full((1, 2), float(next(made)))

    found = [kept("kind", key, (1, 2), make, tmp_path)[0, 0].item() for key in ("a", None, "a", None, "b")]
    assert found == [0, 1, 0, 2, 3]
