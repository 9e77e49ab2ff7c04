"""What comes from outside reaches a terminal in letters that steer nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from fedsim.core.errors import InputError, warn
from fedsim.core.terminal import printable, tell

FEDSIM = Path(__file__).parents[2] / "fedsim"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ± 3 % of 日本", "plain, ± 3 % of 日本"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),  # a C1 control, which begins a sequence in eight bits
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u2028b\u00a0c", r"a\u2028b\xa0c"),
        ("\udcff", r"\udcff"),  # a byte of a file name that is no UTF-8
        ("\U000e0041", r"\U000e0041"),  # a tag, which is drawn as nothing
        ("two\n\tlines\r", "two\n\tlines\\r"),
    ],
)
def test_letters_that_are_not_printable_are_escaped(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_everything_that_is_told_is_printable(capsys):
    tell("out\x1b[1m")
    warn("a line\x1b[2m\nand another")
    told = capsys.readouterr()
    assert told.out == "out\\x1b[1m\n"
    assert told.err == "fedsim: warning: a line\\x1b[2m and another\n"
    assert str(InputError("a\x1b", "b\n\x07", "c\u202e")) == r"a\x1b = b \x07: c\u202e"


def test_fedsim_prints_at_one_place():
    """And lays out what it says on a console of its own, and answers scripts in another."""
    allowed = {FEDSIM / "core" / "terminal.py", FEDSIM / "cli" / "console.py", FEDSIM / "cli" / "answers.py"}
    for path in sorted(set(FEDSIM.rglob("*.py")) - allowed):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        called = {function.id for function in calls if isinstance(function, ast.Name)}
        assert "print" not in called, path
        attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not {"sys.stdout.write", "sys.stderr.write", "traceback.print_exc"} & attributes, path
        consoles = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "rich.console"
            for alias in node.names
            if alias.name == "Console"
        }
        assert not consoles & called, path


def test_a_message_shows_the_ends_of_a_long_value():
    several = ("a" * 10_000, [[[[[[[[[[[[[[1]]]]]]]]]]]]]] * 3, 10**5000, {"a": 10**5000}, [1] * 10_000, b"x" * 10_000)
    for value in several:
        assert len(str(InputError("option", value, "take another"))) < 500


def test_a_value_that_is_too_deep_for_python_is_shown():
    value: list[object] = []
    for _ in range(5_000):
        value = [value]
    assert "[[[" in str(InputError("option", value, "take another"))
