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
        ({"x": np.full((3, 2), -1), "y": Y}, {"tokens": True}, ["token id -1"]),
        ({"x": np.array([["a"]] * 3), "y": Y}, {}, ["<U1"]),
        ({"x": X, "y": np.array([None] * 3)}, {}, ["cannot be read as a NumPy archive"]),
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
    refusal(NPZ(path=str(tmp_path / "one.npy")), NOWHERE, "it is one array, not an archive")
    with pytest.raises(InputError, match="standardize"):
        NPZ(path="mine.npz", tokens=True, standardize=True)
