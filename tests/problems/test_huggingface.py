"""Folders of the library `datasets`: which splits and columns are read, and what is refused."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from datafiles import refusal
from PIL import Image
from pyarrow import parquet

from fedsim.core.data_files import DataFolder
from fedsim.problems.datasets.huggingface import HuggingFace

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
CLASSES = {"_type": "ClassLabel", "names": ["zebra", "ape", "none"]}


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def table(rows=12, **columns):
    """Images with a class and a writer, as the library has them."""
    number = np.arange(rows)
    made = {
        "image": [{"bytes": png(PIXELS[row]), "path": None} for row in number],
        "label": number % 2,
        "writer": [f"w{row // 4}" for row in number],
    } | columns
    told = {"info": {"features": {"image": {"_type": "Image"}, "label": CLASSES}}}
    found = pyarrow.table({name: pyarrow.array(list(values)) for name, values in made.items() if values is not None})
    return found.replace_schema_metadata({"huggingface": json.dumps(told)})


def save(folder: Path, found, *names):
    """As `save_to_disk` does; names: of the files, `data.arrow` if none is given."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ("data.arrow",):
        with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, found.schema) as stream:
            stream.write_table(found)
    state = {"_data_files": [{"filename": name} for name in names or ("data.arrow",)]}
    (folder / "state.json").write_text(json.dumps(state))


@pytest.fixture
def folder(tmp_path):
    """The same examples as a saved data set, as saved splits, and as a folder of the hub."""
    save(tmp_path / "saved", table())
    save(tmp_path / "splits" / "train", table())
    save(tmp_path / "splits" / "validation", table(4))
    (tmp_path / "splits" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    parquet.write_table(table(8), tmp_path / "hub" / "data" / "train-00000-of-00002.parquet")
    parquet.write_table(table().slice(8), tmp_path / "hub" / "data" / "train-00001-of-00002.parquet")
    parquet.write_table(table(4), tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    (tmp_path / "hub" / "evil.py").write_text("raise SystemExit")
    return DataFolder(tmp_path)


@pytest.mark.parametrize("path", ["splits", "hub"])
def test_images_of_a_split_with_classes_and_owners(folder, path):
    found = HuggingFace(path=path, owner="writer").load(folder)
    assert np.array_equal(found.x, np.moveaxis(PIXELS, 3, 1) / np.float32(255))
    assert np.array_equal(found.x_test, found.x[:4])
    assert found.y.tolist() == [0, 1] * 6
    assert (found.num_classes, found.told["classes"]) == (3, ["zebra", "ape", "none"])  # in the order that is theirs
    assert found.owner.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.owner_test.tolist() == [0] * 4
    assert not found.drawn
    assert len([place for place in folder.found if place.is_file()]) >= 3


def test_the_library_itself_saves_what_is_read(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["a", "b"]),
        grid=datasets.Array2D((2, 3), "float32"),
        tokens=datasets.Sequence(datasets.Value("int64")),
    )
    number = np.arange(12)
    grids = number[:, None, None] + np.zeros((2, 3), np.float32)
    held = {"image": list(PIXELS), "label": number % 2, "grid": grids, "tokens": grids[:, 0].astype(int)}
    made = datasets.Dataset.from_dict(held, features=features)
    datasets.DatasetDict(train=made, test=made.select(range(4))).save_to_disk(tmp_path / "made")
    made.to_parquet(tmp_path / "one" / "train.parquet")
    for path in ("made", "one"):
        images = HuggingFace(path=path, inputs=["image"], test_share=0.2).load(folder)
        assert np.array_equal(
            images.x[:4], np.moveaxis(PIXELS, 3, 1)[: 4 if path == "made" else 5][:4] / np.float32(255)
        )
        assert images.told["classes"] == ["a", "b"]
    assert np.array_equal(HuggingFace(path="made", inputs=["grid"]).load(folder).x, grids)
    words = HuggingFace(path="made", inputs=["tokens"], tokens=True).load(folder)
    assert (words.x.tolist(), words.vocabulary) == (grids[:, 0].astype(int).tolist(), 12)


def test_numbers_are_features_and_a_share_is_the_test_set(folder, tmp_path):
    number = np.arange(40)
    columns = {"a": number, "b": number / 2, "kind": [f"k{row % 3}" for row in number], "who": number % 4}
    parquet.write_table(pyarrow.table(columns), tmp_path / "numbers.parquet")
    options = {"path": "numbers.parquet", "target": "kind", "owner": "who"}
    found = HuggingFace(**options).load(folder)
    assert (found.x.shape, found.x_test.shape, found.told["classes"]) == ((32, 2), (8, 2), ["k0", "k1", "k2"])
    assert np.array_equal(found.x[:, 0], 2 * found.x[:, 1])
    scaled = HuggingFace(**options, standardize=True).load(folder)
    assert np.allclose(scaled.x.std(axis=0), 1)
    real = HuggingFace(path="numbers.parquet", target="b", inputs=["a"], task="regression").load(folder)
    assert (real.num_classes, real.y[1] * 2) == (0, real.x[1, 0])
    reply = refusal(HuggingFace(path="numbers.parquet", target="kind", color="gray"), folder, "no input is an image")
    assert "problem.dataset.color" in reply


@pytest.mark.parametrize(
    ("columns", "options", "parts"),
    [
        ({}, {"target": "y"}, ["problem.dataset.target", "y", "there are image, label, writer"]),
        ({}, {"inputs": ["writer"]}, ["problem.dataset.inputs", 'texts, which kind = "text" reads']),
        ({}, {}, ["holds images, which are an input alone; leave out writer: inputs = ['image']"]),
        ({}, {"inputs": ["image"], "owner": "image"}, ["is target, owner and input at once"]),
        ({"image": [{"bytes": None, "path": "/etc/passwd"}] * 12}, {"inputs": ["image"]}, ["row 1", "not opened"]),
        (
            {"image": [{"bytes": b"no", "path": None}] * 12},
            {"inputs": ["image"]},
            ["row 1", "cannot be read as an image"],
        ),
        (
            {"label": [0, 1, -1] * 4},
            {"inputs": ["image"]},
            ["row 3", "column 'label' has -1, which is none of its 3 classes"],
        ),
        (
            {"label": [0, 1, 3] * 4},
            {"inputs": ["image"]},
            ["row 3", "column 'label' has 3, which is none of its 3 classes"],
        ),
        (
            {"writer": ["a", None] * 6},
            {"inputs": ["image"], "owner": "writer"},
            ["row 2", "'writer' has no value here"],
        ),
        ({"image": [[1, 2]] * 7 + [[3]] * 5}, {"inputs": ["image"]}, ["row 8", "a list of 1, and the first is of 2"]),
        ({"image": [[1.0, None]] * 12}, {"inputs": ["image"]}, ["row 1", "column 'image' has no value here"]),
        ({"image": [[1.0, -1.0]] * 12}, {"inputs": ["image"], "tokens": True}, ["problem.dataset.tokens"]),
        ({"image": [[1, -1]] * 12}, {"inputs": ["image"], "tokens": True}, ["ids begin at 0"]),
        ({}, {"inputs": ["image"], "test": "test"}, ["problem.dataset.test", "has no splits; leave it out"]),
    ],
)
def test_what_cannot_be_learned_from_is_refused(columns, options, parts, tmp_path):
    save(tmp_path / "saved", table(**columns))
    refusal(HuggingFace(path="saved", **options), DataFolder(tmp_path), *parts)


def test_splits_are_named_as_they_are(folder, tmp_path):
    options = {"inputs": ["image"]}
    refusal(HuggingFace(path="splits", train="dev", **options), folder, "problem.dataset.train", "train, validation")
    refusal(HuggingFace(path="splits", test="train", **options), folder, "problem.dataset.test", "is trained on")
    turned = HuggingFace(path="splits", train="validation", test="train", **options).load(folder)
    assert (len(turned.x), len(turned.x_test)) == (4, 12)
    save(tmp_path / "splits" / "validation", table(0, image=[], writer=[]))
    refusal(HuggingFace(path="splits", **options), folder, "no example in this split", "validation")
    other = tmp_path / "hub" / "other"
    other.mkdir()
    parquet.write_table(table(), other / "train-00000-of-00001.parquet")
    refusal(HuggingFace(path="hub", **options), folder, "has files of the same split, and so has", "name one of these")
    parquet.write_table(table(image=[[1]] * 12), tmp_path / "hub" / "data" / "train-2.parquet")
    refusal(HuggingFace(path="hub/data", **options), folder, "column 'image' holds list", "struct<bytes")


def test_files_outside_of_the_folder_and_damaged_ones_are_not_read(folder, tmp_path):
    state = tmp_path / "saved" / "state.json"
    for name in ("../splits/train/data.arrow", "/etc/passwd", "", ".."):
        state.write_text(json.dumps({"_data_files": [{"filename": name}]}))
        refusal(HuggingFace(path="saved"), folder, "state.json", "is no name in this folder")
    state.write_text("{}")
    refusal(HuggingFace(path="saved"), folder, "cannot be read as the state of a saved data set")
    save(tmp_path / "saved", table(), "a.arrow", "b.arrow")
    assert len(HuggingFace(path="saved", inputs=["image"], test_share=0.0).load(folder).x) == 24
    content = (tmp_path / "saved" / "a.arrow").read_bytes()
    (tmp_path / "saved" / "a.arrow").write_bytes(content[: len(content) // 2])
    refusal(HuggingFace(path="saved", inputs=["image"]), folder, "a.arrow", "cannot be read as a stream of Arrow")


def test_offsets_that_lead_out_of_a_file_are_refused(tmp_path):
    """Arrow reads a stream as it is: a text that lies behind the file would be read from anywhere in the memory."""
    names = pyarrow.array([f"w{row}" for row in range(12)])
    _, offsets, letters = names.buffers()
    wrong = np.frombuffer(offsets, np.int32).copy()
    wrong[6] = 2**30
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 12, [None, pyarrow.py_buffer(wrong), letters])
    found = pyarrow.table({"a": np.arange(12), "label": broken})
    save(tmp_path / "saved", found)
    refusal(HuggingFace(path="saved"), DataFolder(tmp_path), "data.arrow", "cannot be read as a stream of Arrow")


def test_more_than_the_memory_holds_is_refused(folder, monkeypatch):
    monkeypatch.setattr("fedsim.core.data_files.room", lambda: 500)
    refusal(HuggingFace(path="saved", inputs=["image"]), folder, "and this machine has", "name fewer columns")


@pytest.mark.parametrize(
    ("values", "task", "shown"),
    [
        ([[1, 0], [0, 1], [1, 1]], "tags", ("tags", 2, ())),
        ([[1, 0], [0, 1], [1, 1]], "regression", ("numbers", 2, ())),
        ([[1, 4], [-100, 2], [0, -100]], "classification", ("classes", 5, (2,))),
    ],
)
def test_lists_are_several_labels_of_an_example(folder, values, task, shown):
    """Those of a saved folder and of a test split, in their order."""
    columns = {"image": None, "writer": None, "a": [0.5, 1.5, 2.5], "several": values}
    for split in ("train", "test"):
        save(folder.path / "lists" / split, table(3, **columns))
    (folder.path / "lists" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    found = HuggingFace(path="lists", target="several", inputs=["a"], task=task).load(folder)
    assert (found.task, found.outputs, found.places) == shown
    assert found.y.tolist() == found.y_test.tolist() == values


def test_lists_of_texts_are_no_labels(folder):
    save(folder.path / "texts", table(2, image=None, a=[0.5, 1.5], several=[["u"], ["v"]]))
    refusal(HuggingFace(path="texts", target="several", inputs=["a"]), folder, "target = several: holds texts")
