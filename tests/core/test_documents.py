"""TOML and JSON of somebody else's: whatever stands in them, what goes wrong is a ValueError of one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedsim.core.documents import DEPTH, parse_json, parse_toml, read_toml
from fedsim.core.errors import InputError
from fedsim.core.files import expanded, look, read_bytes, read_lines


def nested(opening: str, inner: str, closing: str, depth: int) -> str:
    return opening * depth + inner + closing * depth


@pytest.mark.parametrize(
    "text",
    [
        f"a = {nested('[', '', ']', 5_000)}",
        f"a = {nested('{a = ', '1', '}', 3_000)}",
        f"[{'.'.join('a' * 2_000)}]",
        f"{'.'.join('a' * 2_000)} = 1",
        f"a = {nested('[', '', ']', DEPTH + 1)}",
        f"a = {'9' * 5_000}",
        "a = 1\na = 2",
        "a = 1979-13-45",
    ],
)
def test_toml_that_nobody_can_take(text):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_toml(text)


@pytest.mark.parametrize("depth", [1, DEPTH - 1])
def test_what_is_shallow_is_read(depth):
    assert str(parse_toml(f"a = {nested('[', '', ']', depth)}")["a"]) == nested("[", "", "]", depth)
    assert str(parse_json(nested("[", "", "]", depth).encode())) == nested("[", "", "]", depth)


def test_the_depth_is_that_of_what_stands_innermost():
    assert str(parse_json(nested("[", "1", "]", DEPTH).encode())) == nested("[", "1", "]", DEPTH)
    with pytest.raises(ValueError, match=f"more than {DEPTH} times"):
        parse_json(nested("[", "1", "]", DEPTH + 1).encode())


@pytest.mark.parametrize(
    "text", ["[" * 100_000, nested("[", "", "]", DEPTH + 2), "9" * 5_000, "NaN", "[Infinity]", "\xff", "", "{"]
)
def test_json_that_nobody_can_take(text):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_json(text.encode("latin-1"))


def test_only_files_are_read_and_no_more_than_was_said(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_bytes(file, 5) == b"12345"
    with pytest.raises(OSError, match="more than the 4 bytes"):
        read_bytes(file, 4)
    file.write_bytes(b"1\n23\n4")
    assert list(read_lines(file, 6)) == [b"1\n", b"23\n", b"4"]
    for most in (1, 4, 5):
        with pytest.raises(OSError, match=f"more than the {most} bytes"):
            list(read_lines(file, most))
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):  # a pipe without a writer would be waited for
        with pytest.raises(OSError, match="no regular file"):
            read_bytes(path, 5)
        with pytest.raises(OSError, match="no regular file"):
            list(read_lines(Path(path), 5))
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path, 5)
    with pytest.raises(OSError, match="null byte"):
        read_bytes(tmp_path / "a\0b", 5)
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbfa = 1")
    assert read_toml(tmp_path / "marked.toml") == {"a": 1}
    (tmp_path / "e.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(ValueError, match="utf-8"):
        read_toml(tmp_path / "e.toml")


def test_paths_that_the_system_refuses_are_refused_by_name(tmp_path):
    assert look(tmp_path, "out") is not None
    assert look(tmp_path / "nothing" / "here", "out") is None
    assert look(tmp_path / "nothing", "out") is None
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, why in (("a" * 5_000, "file name too long"), ("a\0b", "null byte"), ("loop", "symbolic links")):
        with pytest.raises(InputError, match=rf"^out = .*{why}"):
            look(tmp_path / name, "out")
    with pytest.raises(InputError, match=r"^data-dir = ~nosuchuser/a: there is no such user"):
        expanded("~nosuchuser/a", "data-dir")
