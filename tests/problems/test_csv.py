"""Tables: what is read is what was written, and what is fitted knows no test example."""

import bz2
import gzip
import io
import lzma
import os
import zipfile

import numpy as np
import pandas
import pytest
from datafiles import NOWHERE, refusal

from fedsim.core.errors import InputError
from fedsim.problems.datasets import DataFolder
from fedsim.problems.datasets.cells import MISSING, SAMPLE
from fedsim.problems.datasets.tables import CSV


def table(tmp_path, text, name="mine.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def rows(form, count=40):
    """Rows of a table, in which `{i}` is the row's number and `{c}` its class."""
    return "".join(form.format(i=i, c=i % 2) + "\n" for i in range(count))


def read(tmp_path, text, **options):
    """All examples of a table, in the order of its rows, as they are written."""
    options = {"label": "y", "test_share": 0.0, "standardize": False} | options
    return CSV(path=table(tmp_path, text), **options).load(NOWHERE)


def test_csv_by_hand(tmp_path):
    path = table(tmp_path, "a,who,b,kind\n1,x,2,cat\n3,y,4,dog\n\n5,x,6,cat\n")
    data = CSV(path=path, label="kind", owner="who", test_share=0.0, standardize=False).load(NOWHERE)
    assert data.x.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert (data.y.tolist(), data.num_classes, data.owner.tolist()) == ([0, 1, 0], 2, [0, 1, 0])
    scaled = CSV(path=path, label=-1, owner=1, test_share=0.0).load(NOWHERE)
    np.testing.assert_allclose(scaled.x[:, 0], np.array([-1, 0, 1]) * 1.5**0.5, rtol=1e-6)


def test_csv_without_header_numbers_classes_as_numbers_and_splits_by_owner(tmp_path):
    rows = "".join(f"{label};{row};{row % 2}\n" for row, label in enumerate([10, 9, 10, 9, 10, 9, 10, 9]))
    path = table(tmp_path, rows)
    data = CSV(path=path, label=0, header=False, delimiter=";", owner=2, test_share=0.25).load(NOWHERE)
    # 9 comes before 10 as a number, after it as text; a quarter of 4 examples of each owner is one.
    assert sorted(data.y.tolist()) == [0, 0, 0, 1, 1, 1]
    assert sorted(data.owner_test.tolist()) == [0, 1]
    numbers = CSV(path=path, label=0, header=False, delimiter=";", task="regression").load(NOWHERE)
    assert (numbers.num_classes, numbers.y.dtype) == (0, np.float32)
    assert set(numbers.y.tolist()) <= {9.0, 10.0}


@pytest.mark.parametrize(
    ("text", "options", "parts"),
    [
        ("", {}, ["no row"]),
        ("a,y\n", {}, ["no row"]),
        ("a,y\n1,2\n3\n", {}, ["row 2 has 1 fields", "2 columns"]),
        ("a,y\n1,2\ncat,2\n", {}, ["row 2, column 'a'", "'cat'", "not a number"]),
        ("a,y\n1,2\nNaN,2\n", {}, ["column 'a' has no value in row 2", 'missing = "drop"']),
        ("a,y\n1,2\n1e60,2\n", {"standardize": False}, ["column 'a' has 1e60 in row 2, too large"]),
        ("a,y\n1,2\ninf,2\n", {}, ["column 'a' has inf in row 2"]),
        ("a,y\n1,2\n,2\n", {}, ["column 'a' has no value in row 2"]),
        ("a,b,y\n1,3,2\n1,3,2,2\n", {}, ["row 2 has 4 fields", "3 columns"]),
        ('a,y\n1,"2\n', {}, ["EOF inside string"]),
        ("a,y\n1,2\n\0,2\n", {}, ["NUL at letter 9"]),
        (b"\xe9,y\n1,2\n", {}, ["not utf-8, byte 0", 'encoding = "latin-1"']),
        ("a,y\n1,2\n1,2\n", {"header": None, "drop": ["a"]}, ["no column besides"]),
        ("a,a,y\n1,2,3\n", {}, ["the first row has 'a' twice", "header = false"]),
        ("a,2019,y\n1,2,3\n", {}, ["the first row has 2019", "header = true"]),
        ("a,,y\n1,2,3\n1,2,3\n", {}, ["column 1 has no name", "drop = [1]"]),
        ("a,y\n1,2\n", {"features": ["y"]}, ["problem.dataset.features = y"]),
        ("a,y\n1,2\n", {"encode": "hash"}, ["every feature is a number already"]),
        ("a,y\n1,2\n", {"encode": {"z": "hash"}}, ["problem.dataset.encode = z", "no feature"]),
        ("a,b,y\n,1,2\n,1,2\n", {"missing": "fill"}, ["column 'a' has no value in any training example"]),
        ("a,y\n,2\n,2\n", {"missing": "drop"}, ["missing in every row"]),
        ("a,y\n1,x\n1,1_000\n", {"task": "regression"}, ["row 1, column 'y', has 'x'"]),
        (rows("{i},{i}.5", 5), {"header": False, "label": 1}, ["5 different numbers", 'task = "regression"']),
        ("a;y\n" + rows("{i};{i},5", 5), {}, ["5 different numbers", 'task = "regression"']),
        ("a,y\n" + rows("{c},{i}"), {}, ["40 different numbers", 'task = "regression"']),
        ("a,y\n" + rows("{c},name {i}"), {}, ["40 different texts"]),
        ("id,a,y\n" + rows("{i},3,{c}"), {}, ["column 'id' counts the rows", "drop = ['id']"]),
        ("a;y\n" + rows("{i},5;{c}"), {}, ["'0,5', which is not a number", 'decimal = ","']),
        ("a,y\n1,2\n1,\n", {}, ["column 'y' has no value in row 2"]),
        ("a,y\n1,2\n1,nan\n", {}, ["column 'y' has no value in row 2"]),
        ("a,y\n1,2\n1,z\n", {"task": "regression"}, ["row 2, column 'y'", "'z'"]),
        ("a,y\n1,2\n", {"label": "z"}, ["problem.dataset.label = z", "a, y"]),
        ("a,y\n1,2\n", {"label": 2}, ["problem.dataset.label = 2", "2 columns"]),
        ("a,y\n1,2\n", {"owner": "z"}, ["problem.dataset.owner = z"]),
        ("a,y\n1,2\n", {"owner": "a"}, ["no column besides"]),
        ("a,y\n1,2\n", {"drop": ["y"]}, ["problem.dataset.drop = y", "the label or the owner"]),
        ("a,b,y\n1,2,3\n", {"drop": ["a", 0]}, ["problem.dataset.drop = a", "named twice"]),
        ("a,y\n1,2\n", {"numbers": ["a"]}, ["problem.dataset.numbers = a", "no feature with codes"]),
        ("a,b,y\n01,2,3\n", {"numbers": ["a"], "drop": ["a"]}, ["problem.dataset.numbers = a", "no feature"]),
        ("a,b,y\n01,2,3\n", {"numbers": ["a"], "encode": {"a": "hash"}}, ["problem.dataset.numbers = a"]),
        ("a,y\n1,2\n", {"label_ending": "."}, ["problem.dataset.label_ending = .", "no label"]),
        ("a,y\n1,.\n", {"label_ending": "."}, ["no label in column 'y' ends so"]),
        ("a,y\n1,2\n", {"merge": {"b": ["3"]}}, ["problem.dataset.merge = b", "no label in column 'y' is '3'"]),
        ("a,y\n1,2\n", {"merge": {"b": []}}, ["problem.dataset.merge = b", "'b' has no label"]),
        ("a,a,y\n1,2,3\n", {"header": True, "encode": {"a": "hash"}}, ["encode = a", "several columns"]),
        ("a,b,y\n1,,3\n2,,3\n", {"missing": "drop"}, ["missing in every row", "column 'b' has no value at all"]),
        ("a,b,y\n,1,2\n,1,2\n", {"missing": "fill"}, ["mine.csv", "drop = ['a']"]),
        ("a,y\n1,x\n1,x,\n", {}, ["row 2 has 3 fields", "2 columns"]),
        ("a,y\nx,1\n" * 2, {"encode": "hash", "hash_columns": 2**50}, ["hash_columns", "GiB"]),
        (b"\xef\xbb\xbfa,y\n1,2\n", {"encoding": "latin-1"}, ["encoding = latin-1", "the mark of utf-8"]),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0", {}, ["is a workbook of Excel; save it as CSV"]),
        (b"PAR1\0\0PAR1", {}, ['is Parquet; say kind = "parquet"']),
        ("<!DOCTYPE html><table></table>", {}, ["is HTML or XML, no table"]),
        ('[{"a": 1}, {"a": 2}]', {}, ["is JSON, no table"]),
        ('{"a": 1}\n{"a": 2}\n', {}, ["is JSON, no table"]),
    ],
)
def test_bad_tables_are_one_line_each(tmp_path, text, options, parts):
    path = table(tmp_path, text)
    refusal(CSV(**({"path": path, "label": "y"} | options)), NOWHERE, *parts)


def test_own_paths_are_looked_for_in_the_current_and_the_data_folder(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for place, value in ((here, 1), (there, 2)):
        place.mkdir()
        (place / "mine.csv").write_text(f"a,y\n{value},0\n{value},1\n")
    monkeypatch.chdir(tmp_path)
    loader = CSV(path="mine.csv", label="y", test_share=0.0, standardize=False)
    assert loader.load(DataFolder(there)).x[0, 0] == 2
    monkeypatch.chdir(here)
    assert loader.load(DataFolder(there)).x[0, 0] == 1
    missing = CSV(path="absent.csv", label="y")
    refusal(missing, DataFolder(there), str(here / "absent.csv"), str(there / "absent.csv"))
    refusal(CSV(path=str(here), label="y"), NOWHERE, "is a folder, not CSV text")
    for refused, others in (
        ({"delimiter": ";;"}, {}),
        ({"delimiter": '"'}, {}),
        ({"comment": "//"}, {}),
        ({"delimiter": "\u00a7"}, {}),
        ({"comment": ",", "delimiter": ","}, {}),
        ({"encoding": "utf\0-8"}, {}),
        ({"encode": {}}, {}),
        ({"hash_columns": 8, "encode": "one_hot"}, {}),
        ({"encoding": "klingon"}, {}),
        ({"encoding": "hex"}, {}),
        ({"owner_is_file": True}, {"owner": "a"}),
        ({"drop": ["b"]}, {"features": ["a"]}),
    ):
        with pytest.raises(InputError, match=next(iter(refused))):
            CSV(path="mine.csv", label="y", **refused, **others)


# As it is written


@pytest.mark.parametrize("column", ["owner", "y"])
@pytest.mark.parametrize(
    "names",
    [
        ["01", "1", "001"],
        [str(10**16 + i) for i in range(4)],
        ["1e3", "1000"],
        ["1_1", "11"],
        ["0", "-0", "+0"],
        ["TRUE", "True"],
        ["0x1", "1"],
        ["inf", "Infinity"],
    ],
)
def test_ids_and_codes_are_what_is_written(tmp_path, column, names):
    text = f"{column},{'y' if column == 'owner' else 'z'},a\n"
    text += "".join(f"{names[i % len(names)]},{i % 2},{i}\n" for i in range(24))
    data = read(tmp_path, text, **({"owner": "owner"} if column == "owner" else {"drop": ["z"]}))
    held = data.told["owners"] if column == "owner" else data.told["classes"]
    codes = data.owner if column == "owner" else data.y
    assert sorted(held) == sorted(names)
    assert [held[code] for code in codes] == [names[i % len(names)] for i in range(24)]


@pytest.mark.parametrize("options", [{"owner": "who"}, {"label": "who", "drop": ["y"]}])
def test_one_number_with_decimals_and_without_is_not_two(tmp_path, options):
    path = table(tmp_path, "who,a,y\n1,0,0\n1.0,1,1\n2,2,1\n")
    refusal(CSV(**({"path": path, "label": "y"} | options)), NOWHERE, "'1' and '1.0', which are one number")
    encoded = read(
        tmp_path, "who,a,y\n1,0,0\n1.0,1,1\n2,2,1\n07,1,1\n", encode={"who": "ordinal"}, label="y", drop=["a"]
    )
    # With a code in it the column is one of texts: 1, 1.0, 2 and 07 in the order of numbers.
    assert encoded.x[:, 0].tolist() == [0, 1, 2, 3]
    encoded = read(tmp_path, "who,a,y\n1,0,0\n1.0,1,1\n2,2,1\n", encode={"who": "one_hot"}, drop=["a"])
    assert encoded.x.tolist() == [[1, 0], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1", "-2", "+3"], [1, -2, 3]),
        (["1e3", "2.5", ".5"], [1000, 2.5, 0.5]),
        (["True", "FALSE", "true"], [1, 0, 1]),
        (["1700000000.25", "0", "3"], [1700000000.25, 0, 3]),
    ],
)
def test_numbers_are_those_of_pandas(tmp_path, texts, values):
    data = read(tmp_path, "a,y\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(texts)))
    assert data.x[:, 0].tolist() == np.array(values, np.float32).tolist()


@pytest.mark.parametrize(
    "text", ["1_1", "0x1F", "1,5", "1d5", "\u0661", "\u22125", "1 000", "$3", "2024-01-05", "{x}{row}"]
)
def test_what_is_no_number_is_refused_by_name(tmp_path, text):
    path = table(tmp_path, f"a;y\n1;0\n{text};1\n")
    refusal(CSV(path=path, label="y"), NOWHERE, "row 2, column 'a'", repr(text), "not a number", "drop = ['a']")


@pytest.mark.parametrize("text", ["007", "-01", str(10**17)])
def test_codes_are_no_features_unless_one_says_so(tmp_path, text):
    path = table(tmp_path, f"zip,y\n1,0\n{text},1\n")
    refusal(CSV(path=path, label="y"), NOWHERE, "row 2, column 'zip'", repr(text), "numbers = ['zip']")
    data = CSV(path=path, label="y", numbers=["zip"], standardize=False, test_share=0.0).load(NOWHERE)
    assert data.x[:, 0].tolist() == [1, np.float32(text)]
    assert CSV(path=path, label="y", encode="one_hot", test_share=0.0).load(NOWHERE).x.shape == (2, 2)


def test_what_pandas_takes_for_missing_is_missing(tmp_path):
    path = tmp_path / "all.csv"
    pandas.DataFrame({"a": MISSING, "b": 1}).to_csv(path, index=False)
    # The question mark is the only one that is ours; the empty text is what all are after they are read.
    assert pandas.read_csv(path, na_values=["?"])["a"].isna().all()
    for marker in MISSING:
        text = f"sex,a\nfemale,1\nmale,2\n{marker} ,3\n"
        refusal(CSV(path=table(tmp_path, text), label="sex"), NOWHERE, "column 'sex' has no value in row 3")
        assert len(CSV(path=table(tmp_path, text), label="sex", missing="drop", test_share=0.0).load(NOWHERE).x) == 2
    text = "land,a\nNA,1\nDE,2\n-9,3\n,4\n"
    kept = CSV(path=table(tmp_path, text), label="land", missing="drop", missing_values=["-9"], test_share=0.0)
    assert kept.load(NOWHERE).told["classes"] == ["DE", "NA"]


PLAIN = "a,b,y\n" + "".join(f"{i * 0.5},{i % 3},{i % 2}\n" for i in range(12))


def zipped(text, tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("t.csv", text)
        archive.writestr("__MACOSX/t.csv", "no table")
    return (tmp_path / "t.zip").read_bytes()


def by_pandas(text):
    return pandas.read_csv(io.StringIO(text)).to_csv()


def by_r(text):
    """With names of rows, over which there is no name."""
    head, *lines = text.splitlines()
    return "\n".join([head, *(f"row {number},{line}" for number, line in enumerate(lines))])


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (lambda text, _: gzip.compress(text.encode()), {}),
        (lambda text, _: bz2.compress(text.encode()), {}),
        (lambda text, _: lzma.compress(text.encode()), {}),
        (zipped, {}),
        (lambda text, _: b"\xef\xbb\xbf" + text.encode(), {}),
        (lambda text, _: text.encode("utf-16"), {}),
        (lambda text, _: text.encode("utf-32"), {}),
        (lambda text, _: text.encode("utf-16-le"), {"encoding": "utf-16-le"}),
        (lambda text, _: text.replace("b,y", "\xe9,y").encode("latin-1"), {"encoding": "latin-1"}),
        (lambda text, _: text.replace("\n", "\r\n").encode(), {}),
        (lambda text, _: text.replace("\n", "\r").encode(), {}),
        (lambda text, _: text.replace("\n", "\n\n").encode(), {}),
        (lambda text, _: text.replace(",", " , ").encode(), {}),
        (lambda text, _: text.replace(",", ";").encode(), {}),
        (lambda text, _: text.replace(",", "\t").encode(), {}),
        (lambda text, _: text.replace(",", "|").encode(), {}),
        (lambda text, _: text.replace(",", "   ").encode(), {}),
        (lambda text, _: text.replace(",", "^").encode(), {"delimiter": "^"}),
        (lambda text, _: text.replace(",", ";").replace(".", ",").encode(), {"decimal": ","}),
        (lambda text, _: text.replace("\n", ",\n").encode(), {}),
        (lambda text, _: "".join(f'"{line}"\n' for line in text.replace(",", '","').splitlines()).encode(), {}),
        (lambda text, _: text.split("\n", 1)[1].encode(), {"header": False, "label": -1}),
        (lambda text, _: text.replace("\n", "\n# no row\n").encode(), {"comment": "#"}),
        (lambda text, _: text.replace("b", "2020").encode(), {"header": True}),
        (lambda text, _: text.replace("b", "a").encode(), {"header": True}),
        (lambda text, _: by_pandas(text).encode(), {}),
        (lambda text, _: by_pandas(by_pandas(text)).encode(), {}),
        (lambda text, _: by_r(text).encode(), {}),
    ],
)  # fmt: skip
def test_one_table_in_many_ways_of_writing(tmp_path, write, options):
    data = read(tmp_path, write(PLAIN, tmp_path), **options)
    assert data.x.tolist() == [[i * 0.5, i % 3] for i in range(12)]
    assert data.y.tolist() == [0, 1] * 6


def test_two_delimiters_that_both_divide_are_not_guessed(tmp_path):
    path = table(tmp_path, "1,5;2,3\n2,5;0,1\n")
    refusal(CSV(path=path, label=-1, header=False), NOWHERE, "problem.dataset.delimiter", "',' and ';'")


def test_a_pipe_or_a_device_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    refusal(CSV(path=str(tmp_path / "pipe.csv"), label="y"), NOWHERE, "neither a file nor a folder")
    refusal(CSV(path="/dev/zero", label="y"), NOWHERE, "neither a file nor a folder")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_bomb_is_refused(tmp_path, monkeypatch, pack):
    monkeypatch.setattr("fedsim.core.data_files.EXPANDED", 10_000)
    packed = pack(b"a,y\n" + b"0,1\n" * 100_000)
    path = table(tmp_path, packed)
    refusal(CSV(path=path, label="y"), NOWHERE, f"is {len(packed)} bytes that unpack to more than")
    cut = table(tmp_path, packed[: len(packed) // 2])
    refusal(CSV(path=cut, label="y"), NOWHERE, "mine.csv")


# Features


def test_columns_are_chosen_by_name_or_place(tmp_path):
    text = "a,b,c,y\n" + rows("{i},1,{c},{c}", 4)
    assert read(tmp_path, text, drop=["b", 0]).x.tolist() == [[0], [1], [0], [1]]
    assert read(tmp_path, text, features=["c", "a"]).x.tolist() == [[0, 0], [1, 1], [2, 0], [3, 1]]
    assert read(tmp_path, text, drop=[2], label=3).x.tolist() == [[0, 1], [1, 1], [2, 1], [3, 1]]
    named = read(tmp_path, "id,a,y\n" + rows("{i},2,{c}", 4), features=["id", "a"])
    assert named.x.tolist() == [[0, 2], [1, 2], [2, 2], [3, 2]]


def test_each_encoding_by_hand(tmp_path):
    text = "a,job,y\n1,cook,0\n2,smith,1\n3,cook,0\n4,baker,1\n"
    one_hot = read(tmp_path, text, encode="one_hot")
    assert one_hot.x.tolist() == [[1, 0, 1, 0], [2, 0, 0, 1], [3, 0, 1, 0], [4, 1, 0, 0]]
    assert one_hot.told["features"][1] == {
        "name": "job",
        "encoding": "one_hot",
        "categories": ["baker", "cook", "smith"],
    }
    assert read(tmp_path, text, encode={"job": "ordinal"}).x[:, 1].tolist() == [1, 2, 1, 0]
    hashed = read(tmp_path, text, encode="hash", hash_columns=4).x
    # The sign of a text's hash in one of four columns, the same for the same text.
    assert np.abs(hashed[:, 1:]).sum(axis=1).tolist() == [1, 1, 1, 1]
    assert hashed[0, 1:].tolist() == hashed[2, 1:].tolist()
    numbers = read(tmp_path, text, encode={"a": "ordinal", "job": "hash"}, hash_columns=2)
    assert numbers.x[:, 0].tolist() == [0, 1, 2, 3]


def test_places_of_numbers_are_in_the_order_of_numbers(tmp_path):
    data = read(tmp_path, "a,y\n10,0\n9,1\n100,0\n9,1\n", encode={"a": "ordinal"})
    assert data.x[:, 0].tolist() == [1, 0, 2, 0]


def test_too_many_categories_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fedsim.problems.datasets.features.MOST_CATEGORIES", 9)
    path = table(tmp_path, "a,y\n" + rows("t{i},{c}", 10))
    refusal(CSV(path=path, label="y", encode="one_hot", test_share=0.0), NOWHERE, "column 'a' has 10 different texts")


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "17000000{:02d}",  # seconds since 1970, of which single precision does not tell two apart
        "1000000000{:02d}",
        "0.0000000001{:02d}",
        "{}e-300",
        "{}e300",
        "-{}e-20",
        "1{:02d}e305",
    ],
)
def test_a_column_of_any_size_is_standardised(tmp_path, form):
    data = read(tmp_path, "a,y\n" + "".join(f"{form.format(i)},{i % 2}\n" for i in range(60)), standardize=True)
    # The ranks 0 .. 59 have mean 29.5 and deviation sqrt((60^2 - 1) / 12).
    expected = (np.arange(60) - 29.5) / np.sqrt(3599 / 12) * (-1 if form[0] == "-" else 1)
    np.testing.assert_allclose(data.x[:, 0], expected, rtol=1e-5, atol=1e-6)
    (told,) = data.told["features"]
    scale = abs(float(form.format(1)) - float(form.format(0)))
    np.testing.assert_allclose(told["deviation"], np.sqrt(3599 / 12) * scale, rtol=1e-5)


@pytest.mark.parametrize("value", ["0", "0.1", "1e300", "-1e-300", "1700000000.1"])
def test_a_constant_column_is_only_shifted(tmp_path, value):
    data = read(tmp_path, "a,b,y\n" + rows(f"{value},{{i}},{{c}}"), standardize=True)
    assert (data.x[:, 0] == 0).all()


def test_what_is_fitted_is_fitted_on_training_examples_alone(tmp_path):
    text = "a,job,y\n1,cook,0\n3,smith,1\n,cook,1\n"
    table(tmp_path, "y,job,a\n0,baker,7\n1,,\n", "tests.csv")
    path = table(tmp_path, text)
    loader = CSV(path=path, test_path="tests.csv", label="y", encode="one_hot", missing="fill")
    data = loader.load(DataFolder(tmp_path))
    # Mean 2 and deviation sqrt(2/3) of 1, 3 and 2, which is filled in; columns of cook and smith.
    wide = np.sqrt(2 / 3)
    np.testing.assert_allclose(data.x, [[-1 / wide, 1, 0], [1 / wide, 0, 1], [0, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(data.x_test, [[5 / wide, 0, 0], [0, 0, 0]], rtol=1e-6)
    assert data.y_test.tolist() == [0, 1]
    dropped = CSV(path=path, test_path="tests.csv", label="y", encode="one_hot", missing="drop")
    assert [
        len(part) for part in (dropped.load(DataFolder(tmp_path)).x, dropped.load(DataFolder(tmp_path)).x_test)
    ] == [2, 1]
    ordinal = CSV(path=path, test_path="tests.csv", label="y", encode="ordinal", missing="fill", standardize=False)
    assert ordinal.load(DataFolder(tmp_path)).x_test[:, 1].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("tests", "parts"),
    [
        ("a,y\n1,0\n", ["no column 'b'", "it has a, y"]),
        ("a,b,y\n1,2,0\n1,2,7\n", ["tests.csv", "row 2, column 'y', has '7'", "no training example"]),
        ("a,b,y\n1,x,0\n", ["tests.csv", "row 1, column 'b', has 'x'"]),
        ("a,b,y\n1,,0\n", ["tests.csv", "column 'b' has no value in row 1"]),
        ("a,b,y\n1,2,NA\n", ["tests.csv", "column 'y' has no value in row 1"]),
        ("a,b,who,y\n1,2,p,0\n1,2,z,1\n", ["tests.csv", "row 2 is a test example of 'z'"]),
    ],
)
def test_a_bad_test_file_is_one_line(tmp_path, tests, parts):
    table(tmp_path, tests, "tests.csv")
    path = table(tmp_path, "who,a,b,y\np,1,2,0\nq,3,4,1\n")
    owner = {"owner": "who"} if "who" in tests else {"drop": ["who"]}
    refusal(CSV(path=path, test_path="tests.csv", label="y", **owner), DataFolder(tmp_path), *parts)
    refusal(CSV(path=path, test_path="absent.csv", label="y"), DataFolder(tmp_path), "problem.dataset.test_path")


def test_several_files_are_one_table_or_one_owner_each(tmp_path):
    table(tmp_path, "a,y\n1,0\n2,1\n", "site-b.csv")
    table(tmp_path, "a,y\n3,0\n4,1\n", "site-a.csv")
    (tmp_path / "._site-a.csv").write_bytes(b"\0 of a system")
    options = {"path": "*site-*.csv", "label": "y", "test_share": 0.0, "standardize": False}
    assert CSV(**options).load(DataFolder(tmp_path)).x[:, 0].tolist() == [3, 4, 1, 2]
    owned = CSV(**options, owner_is_file=True).load(DataFolder(tmp_path))
    assert (owned.owner.tolist(), owned.told["owners"]) == ([0, 0, 1, 1], ["site-a", "site-b"])
    table(tmp_path, "a,y\n3,0\nx,1\n", "site-b.csv")
    refusal(CSV(**options), DataFolder(tmp_path), "site-b.csv", "row 2, column 'a', has 'x'")
    table(tmp_path, "a,y\n7,0\n8,1\n", "site-[ab].csv")
    literal = CSV(**options | {"path": "site-[ab].csv"}).load(DataFolder(tmp_path))
    assert literal.x[:, 0].tolist() == [7, 8]
    (tmp_path / "site-[ab].csv").unlink()
    table(tmp_path, "b,y\n3,0\n", "site-b.csv")
    refusal(CSV(**options), DataFolder(tmp_path), "site-b.csv: has the columns b, y")


def test_test_examples_of_owners_who_never_train_are_nobodys(tmp_path):
    table(tmp_path, "who,a,y\nz,1,0\n", "tests.csv")
    path = table(tmp_path, "who,a,y\np,1,0\nq,3,1\n")
    data = CSV(path=path, test_path="tests.csv", label="y", owner="who").load(DataFolder(tmp_path))
    assert (data.owner.tolist(), data.owner_test) == ([0, 1], None)


def test_an_ending_of_labels_is_taken_off(tmp_path):
    table(tmp_path, "|a comment\n1, <=50K.\n2, >50K.\n", "tests.csv")
    path = table(tmp_path, "3, <=50K\n4, >50K\n")
    options = {"path": path, "test_path": "tests.csv", "label": 1, "header": False, "comment": "|"}
    data = CSV(**options, label_ending=".").load(DataFolder(tmp_path))
    assert (data.told["classes"], data.y_test.tolist()) == (["<=50K", ">50K"], [0, 1])


@pytest.mark.parametrize(
    ("place", "options"), [("first", {}), ("last", {"label": "y"}), ("last", {"header": False, "label": -1})]
)
def test_a_table_is_as_wide_as_its_rows_however_long_they_are(tmp_path, place, options):
    # Of gene expressions a row has more letters than the sample by which the delimiter is found.
    names = [f"gene_number_{number}_of{'_a_long' * 40}_name" for number in range(300)]
    assert len(",".join(names)) > SAMPLE
    rows = [] if options.get("header") is False else [",".join(["y", *names] if place == "first" else [*names, "y"])]
    for kind in ("u", "v", "u"):
        cells = [f"{number}.{'5' * 300}" for number in range(300)]
        rows.append(",".join([kind, *cells] if place == "first" else [*cells, kind]))
    data = read(tmp_path, "\n".join(rows) + "\n", **({"label": 0} | options))
    assert (data.x.shape, data.y.tolist()) == ((3, 300), [0, 1, 0])
    np.testing.assert_allclose(data.x[0, -1], 299 + 5 / 9)


def test_a_long_text_beside_an_empty_cell_is_a_cell(tmp_path):
    long = "x" * 200_000
    data = read(tmp_path, f"a,b,y,c\n{long},1,u,2\ny,2,v,\n", encode="ordinal", missing="fill")
    assert data.x.tolist() == [[0, 1, 2], [1, 2, 2]]


@pytest.mark.parametrize(
    "text",
    [
        "a,b,y\n1,2,u,\n3,4,v,\n",  # each row ends with a comma, but for the first
        "a,b,y,\n1,2,u,\n3,4,v,\n",
        "sep=,\na,b,y\n1,2,u\n3,4,v\n",
        "sep=;\r\na;b;y\r\n1;2;u\r\n3;4;v\r\n",
    ],
)
def test_what_programs_add_to_a_table_is_no_cell(tmp_path, text):
    data = read(tmp_path, text)
    assert (data.x.tolist(), data.told["classes"]) == ([[1, 2], [3, 4]], ["u", "v"])


@pytest.mark.parametrize(
    ("packed", "parts"),
    [
        ({"xl/workbook.xml": "", "[Content_Types].xml": ""}, ["is a workbook of Excel; save it as CSV text"]),
        ({"content.xml": "", "mimetype": ""}, ["is a spreadsheet of OpenDocument"]),
        ({"a.csv": "", "b.csv": ""}, ["packs 2 files"]),
    ],
)
def test_a_zip_that_is_no_table_is_called_what_it_is(tmp_path, packed, parts):
    with zipfile.ZipFile(tmp_path / "mine.csv", "w") as archive:
        for name, content in packed.items():
            archive.writestr(name, content)
    refusal(CSV(path=str(tmp_path / "mine.csv"), label="y"), NOWHERE, *parts)


def test_what_a_system_packs_beside_a_table_does_not_count(tmp_path):
    with zipfile.ZipFile(tmp_path / "mine.csv", "w") as archive:
        for name, content in {"a.csv": "a,y\n1,u\n", ".DS_Store": "", "__MACOSX/._a.csv": ""}.items():
            archive.writestr(name, content)
    assert CSV(path=str(tmp_path / "mine.csv"), label="y", standardize=False).load(NOWHERE).x.tolist() == [[1]]


def test_markers_of_what_is_missing_are_compared_as_cells_are(tmp_path):
    data = read(tmp_path, "a,y\n1,u\n - ,u\n", missing="drop", missing_values=[" - "])
    assert data.x.tolist() == [[1]]


def test_a_test_file_is_neither_trained_on_nor_split_nor_empty(tmp_path):
    text = "a,y\n1,u\n2,v\n"
    path, tests = table(tmp_path, text), table(tmp_path, text, "tests.csv")
    both = CSV(path=str(tmp_path / "*.csv"), label="y", test_path=tests)
    refusal(both, NOWHERE, "problem.dataset.test_path", "tests.csv is trained on, too")
    (tmp_path / "link.csv").symlink_to(path)
    refusal(CSV(path=path, label="y", test_path=str(tmp_path / "link.csv")), NOWHERE, "is trained on, too")
    split = CSV(path=path, label="y", test_path=tests, test_share=0.5)
    refusal(split, NOWHERE, "problem.dataset.test_share = 0.5", "nothing is split off")
    empty = table(tmp_path, "a,y\n,u\n", "empty.csv")
    refusal(CSV(path=path, label="y", test_path=empty, missing="drop"), NOWHERE, "in every row", "empty.csv")


def test_labels_are_merged_under_the_name_of_one_class(tmp_path):
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{row},{row % 4}\n" for row in range(40)))
    options = {"path": "t.csv", "label": "y", "test_share": 0.0}
    data = CSV(**options, merge={"ill": ["1", "2", "3"]}).load(DataFolder(tmp_path))
    assert data.told["classes"] == ["0", "ill"]
    assert data.y.tolist() == [0, 1, 1, 1] * 10
    data = CSV(**options, merge={"odd": ["1", "3"], "even": ["0", "2"]}).load(DataFolder(tmp_path))
    assert [data.told["classes"][one] for one in data.y[:4]] == ["even", "odd", "even", "odd"]
    with pytest.raises(InputError, match="labels of regression are no classes"):
        CSV(**options, merge={"ill": ["1"]}, task="regression")
