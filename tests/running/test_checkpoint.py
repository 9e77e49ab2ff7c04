"""Checkpoints: a closed codec that keeps every bit and what is shared, files that notice damage, and when to write."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import nn

from fedsim.configuration.tables import Checkpointing
from fedsim.core.errors import DivergedError, InputError, StalledError
from fedsim.core.graph import Document, GraphError, decode, encode, storable
from fedsim.running import checkpoint as module
from fedsim.running.checkpoint import Checkpoint, DamagedError, Keeper, UnusableError, listed, newest, read, write
from fedsim.running.folder import RunFolder
from fedsim.server.strategy import ServerState


def through(value: Any) -> Any:
    """A value, written down and made again."""
    document = encode(value)
    return decode(Document(document.text, [tensor.clone() for tensor in document.tensors]))


def through_a_file(value: Any, folder: Path) -> Any:
    path = write(folder / "checkpoints", 1, Checkpoint({"value": value}, 0, 0))
    return read(path).snapshot["value"]


def alike(first: Any, second: Any) -> bool:
    """Whether two values are of the same types, and the same to the bit."""
    if type(first) is not type(second):
        return False
    if isinstance(first, float | np.generic):
        return np.asarray(first).tobytes() == np.asarray(second).tobytes()
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and bits(first) == bits(second)
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    if isinstance(first, dict):
        return alike(list(first), list(second)) and alike(list(first.values()), list(second.values()))
    if isinstance(first, list | tuple | deque):
        return len(first) == len(second) and all(map(alike, first, second))
    if isinstance(first, set | frozenset):
        return sorted(map(repr, first)) == sorted(map(repr, second))
    return bool(first == second)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


FLOATS = st.one_of(st.floats(), st.integers(0, 2**64 - 1).map(lambda word: struct.unpack("<d", word.to_bytes(8))[0]))
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(2**62, 2**70), st.text(), st.binary())
KEYS = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
LEAVES = st.one_of(PLAIN, FLOATS, st.lists(st.integers(-(2**63), 2**63), min_size=30, max_size=40))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(lambda values: deque(values, maxlen=6)),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(st.text(), inner, max_size=4).map(OrderedDict),
        st.sets(KEYS, max_size=4),
        st.frozensets(KEYS, max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_any_nest_of_known_things_comes_back(value):
    assert alike(through(value), value)


SHAPES = [(), (0,), (3, 0), (5,), (2, 3)]
DTYPES = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
UNUSUAL = re.compile("complex32|q|bits|x2|int[1-7]$")  # of which PyTorch itself says that they are no numbers yet


@pytest.mark.parametrize(
    "dtype", sorted((dtype for dtype in DTYPES if not UNUSUAL.search(str(dtype))), key=str), ids=str
)
def test_tensors_of_every_type_keep_their_bits(dtype, tmp_path):
    """All of 256 values of a byte, but of truth values two."""
    tensors = []
    for shape in SHAPES:
        size = math.prod(shape) * dtype.itemsize
        content = [number % 2 if dtype == torch.bool else (37 * number) % 256 for number in range(size)]
        tensors.append(torch.tensor(content, dtype=torch.uint8).view(dtype).reshape(shape))
    assert alike(through_a_file(tensors, tmp_path), tensors)


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "<u4", "i8", "f2", "f4", "f8", "c16", "<U3", "S2", "M8[s]"])
@pytest.mark.parametrize("shape", [(), (0,), (4,), (2, 2)], ids=str)
def test_arrays_keep_their_bits(dtype, shape):
    array = np.arange(4 if shape else 1).reshape(-1)[: math.prod(shape)].astype(dtype).reshape(shape)
    found = through(array)
    assert alike(found, array)
    found[...] = array  # can be written to, as before


def test_numbers_of_numpy_stay_what_they_are():
    values = [np.float64(0.1), np.float32(-0.0), np.int64(-3), np.bool_(True)]
    assert alike(through(values), values)


def test_a_nan_keeps_its_payload(tmp_path):
    word = struct.unpack("<d", (0x7FF8_0000_DEAD_BEEF).to_bytes(8, "little"))[0]
    tensor = torch.tensor([0x7FC0_1234, 0x7F80_0001], dtype=torch.int32).view(torch.float32)
    found = through_a_file({"word": word, "tensor": tensor, "minus": -0.0, "inf": -math.inf}, tmp_path)
    assert struct.pack("<d", found["word"]).hex() == "efbeadde0000f87f"
    assert found["tensor"].view(torch.int32).tolist() == [0x7FC0_1234, 0x7F80_0001]
    assert math.copysign(1, found["minus"]) == -1
    assert found["inf"] == -math.inf


def test_views_are_written_as_what_they_show(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    views = [
        base.T,
        base[:, 1],
        base[1:, ::2],
        torch.ones(1).expand(5),
        torch.view_as_complex(base.reshape(6, 2)).conj(),
    ]
    assert alike(through_a_file(views, tmp_path), [view.clone() for view in views])


@storable("tests/leaf")
@dataclass(frozen=True)
class Leaf:
    value: Any
    also: Any = None


@storable("tests/slotted")
class Slotted:
    __slots__ = ("leaf", "name")

    def __init__(self) -> None:
        raise AssertionError("objects are made without it")


@storable("tests/open")
class Open:
    def __init__(self) -> None:
        self.things = [1]


@storable("tests/pair")
class Pair(NamedTuple):
    first: Any
    second: Any


def slotted(leaf: Any, name: str) -> Slotted:
    made = object.__new__(Slotted)
    made.leaf, made.name = leaf, name
    return made


def test_what_is_shared_is_shared_again():
    tensor, leaf, array, own = torch.arange(3.0), Leaf([1]), np.arange(3), {"a": 1}
    value = {
        "one": slotted(leaf, "one"),
        "two": slotted(leaf, "two"),
        "tensors": [tensor, tensor.view(3), tensor[:2], tensor.clone()],
        "pair": Pair(leaf, (leaf, array)),
        "array": array,
        "dicts": (own, own, {"a": 1}),
    }
    assert len(encode(value).tensors) == 4  # the vector, a part of it, its copy, and the array
    found = through(value)
    assert found["one"].leaf is found["two"].leaf is found["pair"].first is found["pair"].second[0]
    assert found["array"] is found["pair"].second[1]
    first, second, part, copy = found["tensors"]
    assert first is second
    assert part is not first
    assert copy is not first
    assert found["dicts"][0] is found["dicts"][1]
    assert found["dicts"][0] is not found["dicts"][2]
    found["one"].leaf.value.append(2)
    assert found["two"].leaf.value == [1, 2]
    assert leaf.value == [1]


def test_things_may_hold_each_other():
    ring: list[Any] = [1]
    box = Open()
    box.things = [ring, (ring, box)]
    ring.append(box)
    found = through(ring)
    assert found[1].things[0] is found
    assert found[1].things[1][1] is found[1]


def test_mappings_keep_their_class_and_order():
    value = [Counter({3: 1, 1: 2}), OrderedDict(b=1, a=2), {(("x", 1), None): 1, 2: 2}, deque([1, 2], maxlen=2)]
    found = through(value)
    assert alike(found, value)
    found[3].append(3)
    assert list(found[3]) == [2, 3]


def test_errors_are_made_again():
    for error in (StalledError("never (1.5 s)"), DivergedError("loss is nan")):
        found = through(error)
        assert (type(found), str(found), found.args) == (type(error), str(error), error.args)


class Stranger:
    pass


@dataclass(frozen=True)
class Kin(Leaf):
    """Of a known class; its own fields are known to nobody."""


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Stranger(), "Stranger"),
        ([{"a": (Stranger(),)}], "Stranger"),
        (Kin(1), "Kin"),
        (len, "builtin_function_or_method"),
        (Path("a"), "Path"),
        ({Leaf(1): 2}, "Leaf as a key"),
        ({(Pair(1, 2), 3)}, "Pair as a key"),
        ({0.5 + 0j: 1}, "complex as a key"),
        (nn.Parameter(torch.ones(1)), "Parameter"),
        (torch.ones(1, requires_grad=True), "waits for a gradient"),
        (torch.eye(2).to_sparse(), "sparse"),
        (np.array([None]), "object"),
        (np.zeros(1, dtype=[("a", "i4")]), "cannot be written down"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (type("text", (str,), {})("a"), "text"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_is_not_known_is_refused_by_name(value, named):
    with pytest.raises(TypeError, match=named):
        encode(value)


@pytest.mark.parametrize(
    ("objects", "root"),
    [
        ([["class", "os:_Environ"]], ["object", 0]),
        ([["error", "builtins:SystemExit", 1]], ["object", 0]),
        ([], ["named", "builtins:tuple", 1]),
        ([], ["eval", "1"]),
        ([], ["object", 3]),
        ([], ["tensor", 0, "cpu"]),
        ([["frob"]], ["object", 0]),
    ],
    ids=json.dumps,
)
def test_nothing_else_can_be_made_from_a_document(objects, root):
    with pytest.raises(GraphError):
        decode(Document(json.dumps({"objects": objects, "root": root}), []))


def test_an_object_with_other_fields_is_refused():
    text = encode(Leaf(1)).text
    assert '["also",null]' in text
    with pytest.raises(GraphError, match="tests/leaf has other fields now"):
        decode(Document(text.replace(',["also",null]', ""), []))
    text = encode(Pair(1, 2)).text
    assert '"tests/pair",1,2' in text
    for values in ("1", "1,2,3"):
        with pytest.raises(GraphError, match="tests/pair has other fields now"):
            decode(Document(text.replace("1,2", values), []))


def test_a_name_stays_when_the_class_moves():
    written = """{"root": ["object", 0], "objects": [["class", "server-state", ["params", ["tensor", 0, "cpu"]],
        ["round", 3], ["phase", 0], ["optimizer", ["object", 1]], ["memory", ["object", 1]],
        ["trained", null]], ["dict"]]}"""
    found = decode(Document(written, [torch.tensor([1.0, 2.0])]))
    assert (type(found), found.params.tolist(), found.round, found.memory) == (ServerState, [1, 2], 3, {})


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(InputError, match=r"^storable = tests/leaf: is the name of .*\.Leaf; give .*\.Kin another$"):
        storable("tests/leaf")(Kin)
    assert through(Leaf(1)) == Leaf(1)


def test_a_module_that_is_executed_again_has_its_names():
    def executed() -> Any:
        space: dict[str, Any] = {"__name__": "plugin", "storable": storable}
        exec("@storable('tests/own')\nclass Own:\n    pass", space)
        return space["Own"]

    earlier, later = executed(), executed()
    assert type(through(later())) is later
    with pytest.raises(TypeError, match=r"plugin\.Own"):
        encode(earlier())


# Files.


def small(extra: Any = None) -> Checkpoint:
    vector = torch.arange(5.0)
    snapshot = {"params": vector, "again": vector, "byte": torch.ones(3, dtype=torch.int8), "extra": extra}
    return Checkpoint(snapshot, 17, 2)


def test_a_file_is_one_of_safetensors_and_comes_back(tmp_path):
    path = write(tmp_path / "checkpoints", 42, small())
    assert path.name.startswith("00000042-")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert {str(tensor.dtype) for tensor in load_file(path).values()} == {"torch.float32", "torch.int8"}
    found = read(path)
    assert (found.position, found.rows) == (17, 2)
    assert found.snapshot["params"].tolist() == [0, 1, 2, 3, 4]
    assert found.snapshot["params"] is found.snapshot["again"]


def test_what_is_read_may_be_changed_and_outlives_the_file(tmp_path):
    path = write(tmp_path / "checkpoints", 1, small())
    found = read(path).snapshot["params"]
    path.write_bytes(b"\0" * path.stat().st_size)
    found += 1
    assert found.tolist() == [1, 2, 3, 4, 5]


def test_every_changed_byte_and_every_length_is_noticed(tmp_path):
    path = write(tmp_path / "checkpoints", 1, small())
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedError, match="is damaged"):
            read(path)
    for length in (0, 1, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError, match="is damaged"):
            read(path)
    path.write_bytes(whole)
    assert read(path).rows == 2
    with pytest.raises(DamagedError, match="cannot be read"):
        read(path.with_name("gone"))


def test_a_file_whose_content_is_none_is_damaged_even_with_its_checksum(tmp_path):
    for content in (b"", b"no safetensors", (2).to_bytes(8, "little") + b"{}"):
        path = tmp_path / f"00000001-{hashlib.blake2b(content, digest_size=16).hexdigest()}.safetensors"
        path.write_bytes(content)
        with pytest.raises(DamagedError, match="cannot be read"):
            read(path)


def test_checkpoints_are_listed_by_round(tmp_path):
    places = [write(tmp_path / "checkpoints", number, small()) for number in (9, 10, 100_000_000, 8)]
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    assert listed(tmp_path / "checkpoints") == [places[2], places[1], places[0], places[3]]
    assert listed(tmp_path / "nowhere") == []


@pytest.fixture
def folder(tmp_path) -> Iterator[RunFolder]:
    """A run folder with two rows."""
    made = RunFolder.create(tmp_path / "run", "x")
    made.write_config({"name": "x"})
    for number in (1, 2):
        made.append({"round": number})
    made.close()
    with RunFolder.reopen(made.path) as opened:
        yield opened


def test_the_newest_that_is_whole_is_taken_and_the_others_are_said(folder, capsys):
    assert newest(folder) == (None, [])
    places = [write(folder.checkpoints, number, small(extra=number)) for number in (1, 2, 3)]
    for path in places[1:]:
        path.write_bytes(path.read_bytes()[:-1])
    found, damaged = newest(folder)
    assert found is not None
    assert found.snapshot["extra"] == 1
    assert damaged == places[:0:-1]
    assert listed(folder.checkpoints) == places[::-1]  # nothing changes before the run goes on
    folder.rewind(found.position, found.rows, damaged)
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith("fedsim: warning: ") and "is damaged" in line for line in said] == [True, True]
    assert listed(folder.checkpoints) == places[:1]  # so that the next one is not removed for being older


def test_with_none_left_one_line_says_how_to_start_again(folder):
    for number in (1, 2):
        path = write(folder.checkpoints, number, small())
        path.write_bytes(b"")
    with pytest.raises(
        UnusableError, match=r"is damaged.*start again: fedsim run .*config.toml --out .*run --force"
    ) as caught:
        newest(folder)
    assert "\n" not in str(caught.value)
    assert len(listed(folder.checkpoints)) == 2


EARLIER = (
    '{"root":["object",0],"objects":[["list",["object",1],26,2,["object",4]],["dict",["state",["object",2]]],'
    '["class","fedsim.strategy:ServerState",["params",["tensor",0,"cpu"]],["round",2],["phase",0],'
    '["optimizer",["object",3]],["memory",["object",3]]],["dict"],["dict"]]}'
)
"""A checkpoint of format 1, in which classes were called as they were in their modules."""


@pytest.mark.parametrize(("notes", "written"), [({}, 1), ({"format": "4"}, 4), ({"format": "6"}, 6)])
def test_another_format_is_refused_in_one_line(folder, capsys, notes, written):
    for number in (1, 2):
        content = save({"0": torch.tensor([1.0, 2.0])}, {"graph": EARLIER, **notes})
        name = f"{number:08d}-{hashlib.blake2b(content, digest_size=16).hexdigest()}.safetensors"
        folder.checkpoints.mkdir(exist_ok=True)
        (folder.checkpoints / name).write_bytes(content)
    wanted = rf"/00000002-\w+\.safetensors has format {written}, and this version of fedsim reads format 5; "
    with pytest.raises(
        UnusableError, match=wanted + r"go on under .*, or start again: fedsim run .* --force$"
    ) as caught:
        newest(folder)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""
    assert len(listed(folder.checkpoints)) == 2


def test_a_checkpoint_that_counts_rows_that_are_gone_is_not_used(folder, capsys):
    size = folder.size  # two lines of 13 bytes
    assert size == 26
    write(folder.checkpoints, 1, Checkpoint({}, size, 2))
    write(folder.checkpoints, 2, Checkpoint({}, size + 1, 3))
    found, _ = newest(folder)
    assert found is not None
    assert found.rows == 2
    assert "has lost rows" in capsys.readouterr().err


# When they are written.


class Run:
    """What a keeper sees of a simulation; a snapshot of it takes so many seconds of a clock."""

    def __init__(self, takes: float = 0.0) -> None:
        self.round, self.told, self.whole, self.takes, self.now = 0, 2, True, takes, 0.0
        self.content: Any = torch.ones(2)

    def snapshot(self, *, copy: bool) -> dict[str, Any]:
        assert not copy
        self.now += self.takes
        return {"content": self.content}


def rounds(folder: RunFolder) -> list[int]:
    return [int(path.name[:8]) for path in listed(folder.checkpoints)]


def kept(folder: RunFolder, run: Run, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Keeper:
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: run.now))
    folder.appended = 2
    return Keeper(folder, run, Checkpointing(**options))


def test_every_k_rounds(folder, monkeypatch):
    run = Run()
    keeper, written = kept(folder, run, monkeypatch, every=3), []
    for number in range(1, 11):
        run.round = number
        keeper()
        written.append(rounds(folder)[:1])
    assert written == [[], [], [3], [3], [3], [6], [6], [6], [9], [9]]
    assert rounds(folder) == [9, 6]


def test_as_many_are_kept_as_asked_for(folder, monkeypatch):
    run = Run()
    keeper = kept(folder, run, monkeypatch, every=1, keep=3)
    for number in range(1, 7):
        run.round = number
        keeper()
    assert rounds(folder) == [6, 5, 4]


def test_by_time_they_take_a_twentieth(folder, monkeypatch):
    """Rounds of 0.3 s, snapshots of 0.1: the first after 1 s, at 1.2 s; the next 20 x 0.1 s later, after 7 rounds."""
    run = Run(takes=0.1)
    keeper, written = kept(folder, run, monkeypatch), []
    for number in range(1, 200):
        run.round, run.now = number, run.now + 0.3
        before = run.now
        keeper()
        written += [number] * (run.now > before)
    assert written[:4] == [4, 11, 18, 25]
    assert len(written) * 0.1 / run.now < 0.05


def test_none_where_there_are_to_be_none(folder, monkeypatch):
    run = Run()
    keeper = kept(folder, run, monkeypatch, every=0)
    for number in range(1, 5):
        run.round, run.now = number, 100.0 * number
        keeper()
    keeper.last()
    assert rounds(folder) == []


def test_no_round_is_written_twice(folder, monkeypatch):
    run = Run()
    keeper = kept(folder, run, monkeypatch)
    run.now = 50.0
    keeper()  # before the first round
    assert rounds(folder) == []
    run.round = 1
    keeper.last()
    before = listed(folder.checkpoints)
    run.now = 100.0
    keeper()
    keeper.last()
    assert listed(folder.checkpoints) == before


@pytest.mark.parametrize(("whole", "told", "written"), [(True, 2, [5]), (False, 2, []), (True, 3, [])])
def test_the_last_one_only_between_rounds_and_with_all_rows_written(folder, monkeypatch, whole, told, written):
    run = Run()
    keeper = kept(folder, run, monkeypatch)
    run.round, run.whole, run.told = 5, whole, told
    keeper.last()
    assert rounds(folder) == written


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_is_said_once_and_the_older_ones_stay(folder, monkeypatch, capsys, broken):
    run = Run()
    keeper = kept(folder, run, monkeypatch, every=1)
    for number in range(1, 4):
        run.round = number
        keeper()
    with monkeypatch.context() as patch:
        patch.setattr(os, broken, full)
        for number in (4, 5):
            run.round = number
            keeper()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("fedsim: warning: no checkpoint of round 4: ")
    assert "no space left on device; the run goes on" in said.lower()
    assert rounds(folder) == [3, 2]
    assert all(read(path) for path in listed(folder.checkpoints))
    assert not list(folder.checkpoints.glob(".*"))
    run.round = 6
    keeper()
    assert rounds(folder) == [6, 3]


def test_a_folder_that_cannot_be_made_is_said(folder, monkeypatch, capsys):
    (folder.path / "checkpoints").write_text("a file")
    run = Run()
    keeper = kept(folder, run, monkeypatch, every=1)
    run.round = 1
    keeper()
    assert "no checkpoint of round 1" in capsys.readouterr().err


def test_a_state_that_cannot_be_written_down_is_named_once(folder, monkeypatch, capsys):
    run = Run()
    run.content = Stranger()
    keeper = kept(folder, run, monkeypatch, every=1)
    for number in (1, 2):
        run.round = number
        keeper()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Stranger cannot be written down; give its class a name: @storable('a-name')" in said
    assert rounds(folder) == []


def test_options_are_held():
    for option, value in (("every", -1), ("keep", 0), ("keep", 1.5)):
        with pytest.raises(InputError, match=option):
            Checkpointing(**{option: value})
