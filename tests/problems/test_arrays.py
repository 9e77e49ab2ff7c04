"""Arrays of a NumPy archive, by the names that they usually have."""

from pathlib import Path

import numpy as np
import pytest
from datafiles import NOWHERE, refusal

from fedsim.core.errors import InputError
from fedsim.problems.datasets.arrays import NPZ


def archive(tmp_path, **arrays):
    np.savez(tmp_path / "mine.npz", **arrays)
    return str(tmp_path / "mine.npz")


def test_npz_with_and_without_a_test_part(tmp_path):
    x, y = np.arange(20).reshape(10, 2), np.array([0, 5] * 5)
    data = NPZ(path=archive(tmp_path, x=x, y=y, owner=np.arange(10) % 5)).load(NOWHERE)
    # Two examples of each of 5 owners: a fifth of two rounds to none.
    assert (len(data.x), len(data.x_test), data.num_classes) == (10, 0, 2)
    data = NPZ(path=archive(tmp_path, x=x, y=y)).load(NOWHERE)
    assert (data.x.dtype, len(data.x), np.bincount(data.y_test).tolist()) == (np.float32, 8, [1, 1])
    path = archive(
        tmp_path,
        x=x,
        y=y,
        x_test=x[:2] + 1,
        y_test=y[:2],
        owner=np.arange(10) + 3,
        owner_test=np.array([12, 3]),
    )
    data = NPZ(path=path).load(NOWHERE)
    assert np.array_equal(data.x, x)
    assert np.array_equal(data.x_test, x[:2] + 1)
    assert (data.y.tolist(), data.owner_test.tolist()) == ([0, 1] * 5, [9, 0])
    assert abs(NPZ(path=path, standardize=True).load(NOWHERE).x.mean()) < 1e-6
    tokens = NPZ(path=path, tokens=True).load(NOWHERE)
    assert (tokens.x.dtype, tokens.vocabulary) == (np.int64, 20)
    assert NPZ(path=path, task="regression").load(NOWHERE).y.tolist() == y.tolist()


X, Y = np.zeros((3, 2), np.float32), np.array([0, 1, 1])


@pytest.mark.parametrize(
    ("arrays", "options", "parts"),
    [
        ({"x": X}, {}, ["no array y", "it holds x"]),
        ({"x": X, "y": Y, "y_test": Y}, {}, ["y_test but no x_test"]),
        ({"x": X, "y": Y, "x_test": X}, {}, ["x_test but no y_test"]),
        ({"x": X, "y": Y[:2]}, {}, ["y has shape (2,)"]),
        ({"x": X, "y": Y, "owner": Y[:2]}, {}, ["owner has shape (2,)"]),
        ({"x": X, "y": np.stack([Y, Y])}, {}, ["y has shape (2, 3)"]),
        ({"x": X + np.nan, "y": Y}, {}, ["x has nan in row 1"]),
        ({"x": X, "y": np.array([0, np.nan, 1])}, {}, ["y has nan in row 2"]),
        ({"x": X, "y": np.array([0, np.inf, 1])}, {"task": "regression"}, ["y has inf in row 2"]),
        ({"x": X[:, 0], "y": Y}, {}, ["shape (3,)"]),
        ({"x": X, "y": Y}, {"tokens": True}, ["float32", "whole numbers"]),
        ({"x": np.full((3, 2), 2**64 - 1, np.uint64), "y": Y}, {"tokens": True}, ["18446744073709551615", "63 bits"]),
        ({"x": X.astype(int) + 2**53 + 1, "y": Y}, {}, ["above 2^53"]),
        ({"x": X + np.longdouble("1e4000"), "y": Y}, {"standardize": True}, ["x has inf in row 1"]),
        ({"x": X[:0], "y": Y[:0]}, {}, ["there is no example of x"]),
        ({"x": X + np.nan, "y": Y}, {"missing": "drop"}, ["missing in every example of x"]),
        ({"x": X, "y": Y, "x_test": X[:0], "y_test": Y[:0]}, {}, ["there is no example of x_test"]),
        ({"x": X, "y": Y, "x_test": X.astype(np.uint8), "y_test": Y}, {}, ["x_test is uint8", "write both alike"]),
        ({"x": X.astype(np.uint8), "y": Y, "x_test": X, "y_test": Y}, {}, ["x_test is float32", "write both alike"]),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, {}, ["y_test has 2 in row 2", "label of no training"]),
        ({"x": X, "y": np.eye(3)}, {}, ["y has shape (3, 3)", "argmax"]),
        (
            {"x": X, "y": Y, "x_test": X, "y_test": Y, "owner": Y, "owner_test": Y + 1},
            {},
            ["owner_test has 2 in row 2", "no training example"],
        ),
        ({"x": np.full((3, 2), -1), "y": Y}, {"tokens": True}, ["token id -1"]),
        ({"x": np.array([["a"]] * 3), "y": Y}, {}, ["<U1"]),
        ({"x": X, "y": np.array([None] * 3)}, {}, ["y holds objects of Python", ".astype"]),
    ],
)
def test_bad_archives_are_one_line_each(tmp_path, arrays, options, parts):
    refusal(NPZ(path=archive(tmp_path, **arrays), **options), NOWHERE, "problem.dataset.path", *parts)


def test_what_is_no_archive_is_one_line(tmp_path):
    path = tmp_path / "mine.npz"
    sound = Path(archive(tmp_path, x=X, y=Y)).read_bytes()
    for content in (b"", b"text", sound[:100], sound[:-40], sound[:60] + b"\xff" + sound[61:]):
        path.write_bytes(content)
        refusal(NPZ(path=str(path)), NOWHERE, "cannot be read as a NumPy archive")
    np.save(tmp_path / "one.npy", X)
    refusal(NPZ(path=str(tmp_path / "one.npy")), NOWHERE, "is one NumPy array")
    with pytest.raises(InputError, match="standardize"):
        NPZ(path="mine.npz", tokens=True, standardize=True)


def test_files_of_other_kinds_are_called_what_they_are(tmp_path):
    path = tmp_path / "mine.npz"
    for content, kind in ((b"\x89HDF\r\n\x1a\n", "HDF5"), (b"MATLAB 5.0 MAT-file", "MATLAB"), (b"PAR1", "Parquet")):
        path.write_bytes(content)
        refusal(NPZ(path=str(path)), NOWHERE, kind)
    refusal(NPZ(path=str(tmp_path)), NOWHERE, "is a folder")


def test_a_validation_set_is_the_test_set_where_there_is_no_other(tmp_path):
    parts = {"x_train": X, "y_train": Y, "x_val": X + 1, "y_val": Y}
    data = NPZ(path=archive(tmp_path, **parts)).load(NOWHERE)
    assert (data.x.tolist(), data.x_test.tolist()) == (X.tolist(), (X + 1).tolist())
    path = archive(tmp_path, **parts, x_test=X + 2, y_test=Y)
    assert NPZ(path=path).load(NOWHERE).x_test.tolist() == (X + 2).tolist()
    refusal(NPZ(path=path, test_share=0.5), NOWHERE, "problem.dataset.test_share = 0.5")
    refusal(NPZ(path=archive(tmp_path, **parts, x_test=X)), NOWHERE, "x_test but no y_test")


def test_numbers_of_any_size_are_standardised(tmp_path):
    x = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    for factor in (1e-320, 1e-310, 1e300):
        path = archive(tmp_path, x=x * factor, y=Y)
        data = NPZ(path=path, standardize=True, test_share=0.0).load(NOWHERE)
        np.testing.assert_allclose(
            data.x[:, 0], [-(1.5**0.5), 0, 1.5**0.5], rtol=0.01, atol=1e-6
        )  # few digits are left


def test_owners_of_a_test_set_who_never_train_are_nobodys(tmp_path):
    parts = {"x": X, "y": Y, "x_test": X, "y_test": Y, "owner": Y}
    data = NPZ(path=archive(tmp_path, **parts, owner_test=Y + 7)).load(NOWHERE)
    assert (data.owner.tolist(), data.owner_test, data.told["owners"]) == ([0, 1, 1], None, ["0", "1"])


@pytest.mark.parametrize(
    ("x", "y", "tested"),
    [
        ("x", "y", ("x_test", "y_test")),
        ("X", "y", ("X_test", "y_test")),
        ("x_train", "y_train", ("x_test", "y_test")),
        ("X_train", "Y_train", ("X_test", "Y_test")),
        ("data", "target", None),
        ("data", "labels", None),
        ("images", "labels", None),
        ("train_images", "train_labels", ("test_images", "test_labels")),
    ],
)
def test_arrays_are_found_by_their_usual_names(tmp_path, x, y, tested):
    arrays = {x: X, y: Y, "class_names": np.array(["no", "yes"]), "x_val": X}
    arrays |= {} if tested is None else {tested[0]: X[:1] + 1, tested[1]: Y[:1]}
    split = {"test_share": 0.0} if tested is None else {}
    data = NPZ(path=archive(tmp_path, **arrays), **split).load(NOWHERE)
    assert (data.x.shape, data.y.tolist(), len(data.x_test)) == ((3, 2), [0, 1, 1], 0 if tested is None else 1)
    assert data.told["arrays"]["x"] == [x] if tested is None else [x, tested[0]]


def test_arrays_are_named_where_their_names_are_others_or_several(tmp_path):
    path = archive(tmp_path, inputs=X, results=Y, data=X + 1, target=Y[::-1], who=np.array(["b", "a", "b"]))
    refusal(NPZ(path=archive(tmp_path, a=X, b=Y)), NOWHERE, "no array x", "it holds a, b", "say by x and y")
    refusal(NPZ(path=archive(tmp_path, x=X, y=Y, X=X)), NOWHERE, "('x', 'y') and ('X', 'y')")
    path = archive(tmp_path, inputs=X, results=Y, who=np.array(["b", "a", "b"]))
    data = NPZ(path=path, x="inputs", y="results", owner="who", test_share=0.0).load(NOWHERE)
    assert (data.y.tolist(), data.owner.tolist(), data.told["owners"]) == ([0, 1, 1], [1, 0, 1], ["a", "b"])
    refusal(NPZ(path=path, x="inputs", y="results", owner="what"), NOWHERE, "problem.dataset.owner = what")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 5, 6), (1, 5, 6)), ((3, 5, 6, 3), (3, 5, 6)), ((3, 3, 5, 6), (3, 5, 6)), ((3, 5, 6, 1), (1, 5, 6))],
)
def test_images_of_bytes_are_those_of_a_folder(tmp_path, shape, expected):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = NPZ(path=archive(tmp_path, x=pixels, y=Y[:, None]), test_share=0.0).load(NOWHERE)
    assert data.x.shape[1:] == expected
    moved = np.moveaxis(pixels, 3, 1) if len(shape) == 4 and shape[1] != 3 else pixels
    np.testing.assert_array_equal(data.x.reshape(3, -1), moved.reshape(3, -1).astype(np.float32) / 255)
    # Other bytes are numbers, and other numbers no bytes.
    assert NPZ(path=archive(tmp_path, x=pixels.reshape(3, -1), y=Y)).load(NOWHERE).x.max() > 1
    assert NPZ(path=archive(tmp_path, x=pixels.astype(np.int32), y=Y)).load(NOWHERE).x.max() > 1


def test_what_is_missing_is_filled_in_by_training_examples_or_left_out(tmp_path):
    x, x_test = np.array([[1, np.nan], [3, 4], [8, 6]]), np.array([[np.nan, 1.0]])
    path = archive(tmp_path, x=x, y=Y, x_test=x_test, y_test=Y[:1])
    refusal(NPZ(path=path), NOWHERE, "x has nan in row 1")
    filled = NPZ(path=path, missing="fill").load(NOWHERE)
    assert (filled.x.tolist(), filled.x_test.tolist()) == ([[1, 5], [3, 4], [8, 6]], [[4, 1]])
    refusal(NPZ(path=path, missing="drop"), NOWHERE, "something is missing in every example of x_test")
    dropped = NPZ(path=archive(tmp_path, x=x, y=Y), missing="drop", test_share=0.0).load(NOWHERE)
    assert (dropped.x.tolist(), dropped.y.tolist()) == ([[3, 4], [8, 6]], [0, 0])
    refusal(NPZ(path=archive(tmp_path, x=x * [1, np.nan], y=Y), missing="fill"), NOWHERE, "feature 1 of x has no value")
    with pytest.raises(InputError, match="missing"):
        NPZ(path=path, tokens=True, missing="fill")


def test_large_numbers_are_standardised_in_double_precision(tmp_path):
    seconds = 1_700_000_000.0 + np.arange(60)[:, None]
    path = archive(tmp_path, x=seconds, y=np.arange(60) % 2)
    data = NPZ(path=path, standardize=True, test_share=0.0).load(NOWHERE)
    np.testing.assert_allclose(data.x[:, 0], (np.arange(60) - 29.5) / np.sqrt(3599 / 12), rtol=1e-5)


def test_real_numbers_are_no_classes(tmp_path):
    path = archive(tmp_path, x=np.zeros((40, 2)), y=np.arange(40) + 0.5)
    refusal(NPZ(path=path), NOWHERE, "40 different numbers", 'task = "regression"')
    assert NPZ(path=path, task="regression").load(NOWHERE).y.dtype == np.float32
    assert NPZ(path=archive(tmp_path, x=np.zeros((40, 2)), y=np.arange(40) % 2 / 2)).load(NOWHERE).num_classes == 2


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"x": X, "y": Y, "x_test": X[:, :1], "y_test": Y}, "x_test is float32 of shape (3, 1)"),
        ({"x": X, "y": Y, "x_test": X, "y_test": np.array(["0", "1", "1"])}, "y_test is <U1"),
        ({"x": np.zeros((3, 0)), "y": Y}, "examples of float64 and no content"),
        ({"x": X, "y": np.array(["a", " NA ", "b"])}, "y has no value in row 2"),
        ({"x": X.astype("M8[s]"), "y": Y}, "x is datetime64[s]"),
        ({"x": X.astype(complex), "y": Y}, "x is complex128"),
        ({"x": np.zeros(3, "f4,f4")[:, None], "y": Y}, "not numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(tmp_path, arrays, part):
    refusal(NPZ(path=archive(tmp_path, **arrays)), NOWHERE, part)


def test_an_archive_that_would_be_large_is_refused_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr("fedsim.core.data_files.EXPANDED", 10_000)
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((100_000, 2)), y=np.zeros(100_000))
    refusal(NPZ(path=str(tmp_path / "bomb.npz")), NOWHERE, "bytes that unpack to more than")
