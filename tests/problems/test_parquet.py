"""Tables of Parquet: what a column becomes, what is left out, and what is refused."""

import sys
from datetime import date
from decimal import Decimal

import numpy as np
import pandas
import pyarrow
import pytest
from datafiles import NOWHERE, refusal
from pyarrow import parquet

from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError
from fedsim.problems.datasets.parquet import Parquet
from fedsim.problems.datasets.tables import CSV


def write(path, rows=40, **columns):
    """A table with a number, a whole number, a text, a category, a label and an owner."""
    number = np.arange(rows)
    made = {
        "real": pyarrow.array(np.random.default_rng(1).normal(size=rows)),
        "whole": pyarrow.array(number % 7, pyarrow.int32()),
        "text": pyarrow.array([f"t{one % 3}" for one in number]),
        "category": pyarrow.array([f"c{one % 4}" for one in number]).dictionary_encode(),
        "label": pyarrow.array([one % 2 == 0 for one in number]),
        "owner": pyarrow.array([f"0{one % 5}" for one in number]),
    } | columns
    parquet.write_table(pyarrow.table(made), path, row_group_size=16)
    return path


def test_a_table_of_parquet_is_what_the_same_one_of_text_is(tmp_path):
    path = write(tmp_path / "a.parquet")
    pandas.read_parquet(path).to_csv(tmp_path / "a.csv", index=False)
    how = {"label": "label", "owner": "owner", "encode": {"text": "one_hot", "category": "ordinal"}}
    found = Parquet(path=str(path), **how).load(NOWHERE)
    wanted = CSV(path=str(tmp_path / "a.csv"), **how).load(NOWHERE)
    for name in ("x", "y", "x_test", "y_test", "owner", "owner_test"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
    assert found.told["features"] == wanted.told["features"]
    assert found.x.shape == (30, 2 + 3 + 1)


def test_columns_that_are_not_used_may_hold_anything(tmp_path):
    pixels = pyarrow.array([[1, 2]] * 40)
    path = str(write(tmp_path / "a.parquet", pixels=pixels, raw=pyarrow.array([b"a"] * 40)))
    options = {"path": path, "label": "label", "features": ("real", "whole")}
    assert Parquet(**options).load(NOWHERE).x.shape == (32, 2)
    left = Parquet(path=path, label=-4, drop=("pixels", "raw", "text", "category", "owner"))
    assert left.load(NOWHERE).x.shape == (32, 2)
    left = Parquet(path=path, label="label", drop=("raw", "text", "category", "owner"))
    refusal(left, NOWHERE, "a.parquet", "column 'pixels' holds list<", "leave it out by drop = ['pixels']")


def test_types_become_texts_and_what_is_null_or_no_number_is_missing(tmp_path):
    columns = {
        "real": pyarrow.array([float("nan"), None, *range(38)], pyarrow.float32()),
        "whole": pyarrow.array([Decimal("1.50")] * 39 + [None]),
        "text": pyarrow.array([date(2020, 1, 1 + one % 2) for one in range(40)]),
        "category": pyarrow.array([2**60 + one % 2 for one in range(40)]).dictionary_encode(),
    }
    path = str(write(tmp_path / "a.parquet", **columns))
    texts = {"text": "one_hot", "category": "one_hot"}
    options = Parquet(path=path, label="label", drop=("owner",), encode=texts, missing="drop", test_share=0.0)
    found = options.load(NOWHERE)
    assert len(found.x) == 37  # of 40 rows one lacks a decimal, one a real, and one has NaN
    told = {one["name"]: one for one in found.told["features"]}
    assert told["text"]["categories"] == ["2020-01-01", "2020-01-02"]
    assert told["category"]["categories"] == [str(2**60), str(2**60 + 1)]
    assert told["real"]["mean"] == pytest.approx(18.0)  # of 0 to 36
    unmissed = Parquet(path=path, label="label", drop=("owner", "category"), encode="one_hot", missing_values=("x",))
    refusal(unmissed, NOWHERE, "column 'real' has no value in row 1")


def test_a_folder_is_its_files_and_each_may_be_an_owners(tmp_path):
    (tmp_path / "sites" / ".cache").mkdir(parents=True)
    for place in ("sites/b", "sites/a", "sites/.cache/c", "test"):
        write(tmp_path / f"{place}.parquet", real=pyarrow.array(np.arange(40.0) + ord(place[-1])))
    drop = ("text", "category", "owner", "whole")
    options = Parquet(path="sites", label="label", drop=drop, owner_is_file=True, standardize=False)
    found = options.load(DataFolder(tmp_path))
    assert found.told["owners"] == ["a", "b"]
    assert found.x[found.owner == 0].min() == 97  # the first of a, not of c
    apart = Parquet(path="sites", label="label", drop=drop, test_path="test.parquet", standardize=False)
    folder = DataFolder(tmp_path)
    found = apart.load(folder)
    assert (len(found.x), found.x_test.min()) == (80, ord("t"))
    assert tmp_path / "sites" / "a.parquet" in folder.found
    again = Parquet(path="sites", label="label", test_path="sites/a.parquet")
    refusal(again, DataFolder(tmp_path), "test_path", "a.parquet is trained on, too")


def test_what_is_no_such_table_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    refusal(Parquet(path="a.csv", label="a"), DataFolder(tmp_path), "a.csv", "cannot be read as Parquet")
    (tmp_path / "empty").mkdir()
    refusal(Parquet(path="empty", label="a"), DataFolder(tmp_path), "there is no file called *.parquet in this folder")
    (tmp_path / "parts" / "year=2020").mkdir(parents=True)
    write(tmp_path / "parts" / "year=2020" / "a.parquet")
    refusal(Parquet(path="parts", label="a"), DataFolder(tmp_path), "value of a column in its name")
    write(tmp_path / "none.parquet", rows=0)
    refusal(Parquet(path="none.parquet", label="label"), DataFolder(tmp_path), "the table has no row of data")
    write(tmp_path / "a.parquet")
    refusal(Parquet(path="a.parquet", label="outcome"), DataFolder(tmp_path), "not the name of one column", "real")
    twice = pyarrow.Table.from_arrays([pyarrow.array([1, 2])] * 3, ["a", "b", "b"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    refusal(Parquet(path="twice.parquet", label="a"), DataFolder(tmp_path), "has the column 'b' twice")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"needs pyarrow, which is not installed: pip install 'fedsim-lab\[parquet\]'"):
        Parquet(path="a.parquet", label="label").load(DataFolder(tmp_path))


def test_what_a_file_promises_is_held_against_the_memory(tmp_path, monkeypatch):
    """Columns of one value, or of one long text, take next to nothing as a file, and their texts all the memory."""
    monkeypatch.setattr("fedsim.core.data_files.room", lambda: 100_000)
    repeated = pyarrow.array([1] * 5000)
    path = tmp_path / "bomb.parquet"
    parquet.write_table(pyarrow.table({"a": repeated, "b": repeated}), path)
    assert path.stat().st_size < 10_000
    refusal(Parquet(path=str(path), label="a"), NOWHERE, "bomb.parquet", "5000 x 16 numbers take")  # 320,000 bytes
    long = pyarrow.array([number % 2 for number in range(900)]), pyarrow.array(["a" * 200] * 900)
    parquet.write_table(pyarrow.table(dict(zip("ab", long, strict=True))), path)
    refusal(Parquet(path=str(path), label="a"), NOWHERE, "leave out the column 'b', whose texts take 180000 bytes")
