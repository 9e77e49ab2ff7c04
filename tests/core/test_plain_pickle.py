"""Pickles of plain data are read; whatever else they would do is refused and not done."""

import os
import pickle
import struct

import numpy as np
import pytest

from fedsim.core.plain_pickle import UnsoundError, load

KINDS = ["?", "i1", "u1", "<i2", ">i2", "<u4", ">i8", "<f2", ">f4", "<f8"]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_are_what_they_were(protocol):
    shared = [1]
    value = {
        "a": [1, -300, 2**40, -(2**70), 1.5, None, True],
        b"b": ("x", b"\xff", "\u00e9", ()),
        3: [shared, shared, {}],
    }
    assert load(pickle.dumps(value, protocol)) == value
    for kind in KINDS:
        for array in (
            np.arange(6).astype(kind).reshape(2, 3),
            np.arange(6).astype(kind).reshape(2, 3).T,
            np.zeros((0, 2), kind),
        ):
            found = load(pickle.dumps({"x": array, "n": 1}, protocol))["x"]
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)


def test_a_batch_of_python_2():
    pixels = bytes(range(24))
    content = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x02K\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x18" + pixels + b"tbU\x06labelsq\x08]q\x09(K\x06K\x09eu."
    )
    found = load(content)
    assert found[b"labels"] == [6, 9]
    assert found[b"data"].tobytes() == pixels
    assert found[b"data"].shape == (2, 12)


class Calls:
    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


class Own:
    pass


@pytest.mark.parametrize(
    "value",
    [
        Calls(os.mkdir, "made"),
        Calls(eval, "1"),
        Calls(np.dtype, "O"),
        Calls(np.dtype, "V8"),
        Calls(np.dtype, "M8[s]"),
        Calls(np.dtype, [("a", "O")]),
        Calls(np.dtype, "f8", state=(3, "|", None, ("f",), {"f": (np.dtype("u1"), 0)}, 8, 1, 0)),
        Calls(np.load, "x"),
        Calls(np.frombuffer, b"x"),
        np.array([None]),
        np.array(["text"]),
        np.array([(1, 2.0)], dtype="i4,f8"),
        np.array(["2020-01-01"], "M8[D]"),
        np.array([1j]),
        Own(),
        Own,
        {(1, 2): 3},
        {1.5: 2},
        {1, 2},
        complex(1, 2),
        Calls(np.empty(1).__reduce__()[0], np.ndarray, (0,), b"b", state=(1, (3,), np.dtype("f8"), False, b"short")),
        Calls(np.empty(1).__reduce__()[0], np.ndarray, (0,), b"b", state=(1, (-3,), np.dtype("f8"), False, b"")),
        Calls(np.empty(1).__reduce__()[0], np.ndarray, (0,), b"b", state=(1, (1,) * 33, np.dtype("u1"), False, b"1")),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_everything_else_is_refused(value, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsoundError):
        load(pickle.dumps(value, protocol))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"text",
        b"N",
        b"(.",
        b"t.",
        b"e.",
        b"N(e.",
        b"h\x01.",
        b"Pid\n.",
        b"c\\Vx\ny\n.",
        b"\x82\x01.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"cos\nsystem\nN}X\x01\0\0\0aNs\x86b.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93)\x81.",
        b"X" + struct.pack("<I", 2**32 - 1) + b"x.",
        b"\x8d" + struct.pack("<Q", 2**62) + b"x.",
        b"\x8b" + struct.pack("<i", 2**31 - 1) + b"1.",
        b"]" * 3 + b"a" * 9 + b".",
    ],
)
def test_what_is_no_pickle_is_refused(content):
    with pytest.raises((UnsoundError, ValueError)):
        load(content)


def test_what_a_pickle_would_have_made_large_is_not(tmp_path):
    # A place in the memo of 2^32, for which Python's machine makes room; and lists of lists of the same list.
    assert load(b"Nr" + struct.pack("<I", 2**32 - 1) + b".") is None
    laughs = b"]q\x00" + b"".join(
        b"](" + b"h" + bytes((n,)) + (b"h" + bytes((n,))) * 9 + b"eq" + bytes((n + 1,)) for n in range(60)
    )
    assert len(load(laughs + b".")) == 10
    deep = load(b"]" * 100_000 + b"a" * 99_999 + b".")
    assert len(deep) == 1
    while deep:  # taken apart from outside, so that freeing it goes no deeper
        deep = deep.pop()
