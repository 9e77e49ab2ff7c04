"""The rows of a run that goes on, as they are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.core.errors import InputError
from fedsim.reports.tail import Tail

PARSE = "fedsim.reports.tail.parse_json"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Adds to the file."""

    def add(text: str) -> Path:
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(text)
        return tmp_path / "metrics.jsonl"

    return add


def test_each_row_is_read_once_when_it_is_whole(write, monkeypatch):
    path = write('{"round": 1, "test_loss": 2.0}\n{"round": 2, "test_loss": null, "clients": 3}\n{"round": 3, "te')
    tail = Tail(path)
    assert not tail.read({})
    assert tail.so_far.last == {"round": 2, "test_loss": None, "clients": 3}
    assert tail.so_far.best == {"test_loss": (2.0, 1)}
    write('st_loss": 1.5}\n{"round": 4, "test_loss": 1.5, "train_accuracy": 0.25}\n')
    read: list[bytes] = []

    def parsed(line: bytes) -> Any:
        read.append(line)
        return json.loads(line)

    monkeypatch.setattr(PARSE, parsed)
    assert not tail.read({})
    assert len(read) == 2
    assert tail.so_far.last == {"round": 4, "test_loss": 1.5, "clients": 3, "train_accuracy": 0.25}
    assert tail.so_far.best == {"test_loss": (1.5, 3), "train_accuracy": (0.25, 4)}


@pytest.mark.parametrize("how", ["shortened", "replaced", "asked otherwise", "gone"])
def test_another_file_is_read_from_its_beginning(how, write):
    path = write('{"round": 1, "test_f": 9.0}\n{"round": 2, "test_f": 8.0}\n')
    tail = Tail(path)
    tail.read({"f": False})
    assert tail.so_far.best == {"test_f": (8.0, 2)}
    if how == "asked otherwise":
        tail.read({"f": True})
        assert tail.so_far.best == {"test_f": (9.0, 1)}
        return
    if how == "shortened":
        path.write_text("")
    else:
        path.rename(path.with_name("old"))
    if how != "gone":
        write('{"round": 7, "test_f": 9.5}\n' + (" \n" * 50 if how == "replaced" else ""))
    if how == "replaced":
        with pytest.raises(InputError, match="line 2 is not JSON"):
            tail.read({"f": False})
    else:
        tail.read({"f": False})
    assert tail.so_far.best == ({} if how == "gone" else {"test_f": (9.5, 7)})


def test_a_long_file_is_read_in_steps(write, monkeypatch):
    path = write("".join(f'{{"round": {number}, "value": {-number}}}\n' for number in range(1, 10)))
    monkeypatch.setattr("fedsim.reports.tail.STEP", 100)
    tail = Tail(path)
    assert [tail.read({}), tail.read({}), tail.read({})] == [True, True, False]
    assert (tail.so_far.last["round"], tail.so_far.best["value"]) == (9, (-9, 9))
    write("x" * 101)
    with pytest.raises(InputError, match="line 10 has more than 100 bytes"):
        tail.read({})


@pytest.mark.parametrize("line", ["[1]", '{"round": -1}', '{"test_loss": "x"}', "{"])
def test_a_line_that_is_no_row_is_refused_if_it_is_not_the_last(line, write):
    tail = Tail(write(f'{{"round": 1}}\n{line}'))
    tail.read({})
    write('\n{"round": 2}\n')
    with pytest.raises(InputError, match="line 2 "):
        tail.read({})
