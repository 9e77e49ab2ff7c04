"""A folder with a few examples in every format that a data set is read from."""

from __future__ import annotations

import gzip
import json
import lzma
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError

NOWHERE = DataFolder()
CLASSES = 10
TRAIN, TEST = 30, 10


def refusal(loader, folder, *parts):
    """The one line with which `loader` refuses; it must contain all `parts`."""
    with pytest.raises(InputError) as caught:
        loader.load(folder)
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line
    return line


def write_all(folder: Path) -> None:
    """Write them all."""
    generator = np.random.default_rng(0)
    for place in ("MNIST", "FashionMNIST"):
        _idx(folder / place / "raw", generator)
    _cifar(folder, generator)
    _femnist(folder / "femnist", generator)
    _fsdd(folder / "fsdd", generator)
    _shakespeare(folder / "shakespeare", generator)
    _covertype(folder / "covertype", generator)
    x, y = generator.normal(size=(40, 3)), np.arange(40) % 2
    rows = [
        f"{','.join(map(str, row))},{label},{number % 4}" for number, (row, label) in enumerate(zip(x, y, strict=True))
    ]
    (folder / "table.csv").write_text("\n".join(["a,b,c,label,owner", *rows]))
    (folder / "tests.csv").write_text("\n".join(["a,b,c,label,owner", *rows[:7]]))
    labels = ["?" if number == 5 else f"{number % 2}{'.' * (number % 3 == 0)}" for number in range(40)]
    texts = [f"{number},0{number % 3},{label},x{number % 4}" for number, label in enumerate(labels)]
    (folder / "texts.csv").write_text("\n".join(["a,code,label,text", *texts]))
    others = {"third": np.arange(40) % 3, "holes": np.where(x > 1, np.nan, x)}
    np.savez(folder / "arrays.npz", x=x, y=y, owner=np.arange(40) % 4, **others)
    np.savez(
        folder / "tokens.npz", x=generator.integers(0, 7, (40, 5)), y=y, other=np.arange(80).reshape(40, 2), **others
    )
    table = {"a": x[:, 0], "b": x[:, 1], "label": y, "owner": np.arange(40) % 4}
    written = {"table": table, "tests": {name: column[:7] for name, column in table.items()}}
    written["texts"] = dict(
        zip(("a", "code", "label", "text"), zip(*(row.split(",") for row in texts), strict=True), strict=True)
    )
    for name, columns in written.items():
        made = {column: pyarrow.array(list(values)) for column, values in columns.items()}
        parquet.write_table(pyarrow.table(made), folder / f"{name}.parquet", row_group_size=25)
    _hub(folder, generator)
    _texts(folder)
    for number in range(12):
        place = folder / "images" / f"class{number % 3}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(place)
        moving = folder / "moving" / place.parent.name / f"{number}.gif"
        moving.parent.mkdir(parents=True, exist_ok=True)
        frames = [Image.fromarray(frame) for frame in generator.integers(0, 256, (2, 6, 6), dtype=np.uint8)]
        frames[0].save(moving, save_all=True, append_images=frames[1:])


def _hub(folder: Path, generator: np.random.Generator) -> None:
    """Images as the library `datasets` saves them, and as its hub has them."""
    images = []
    for pixels in generator.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8):
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    numbers = generator.normal(size=20)
    columns = {"image": images, "label": list(range(2)) * 10, "owner": list("abcde") * 4, "number": numbers.tolist()}
    columns |= {"grid": [[number, number] for number in range(20)], "other": numbers.tolist()}
    features = {"label": {"_type": "ClassLabel", "names": ["first", "second"]}}
    table = pyarrow.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    for place in ("saved", "parts/train", "parts/test", "parts/dev", "hub"):
        (folder / place).mkdir(parents=True)
        if place == "hub":
            parquet.write_table(table, folder / place / "train.parquet")
            continue
        with (
            pyarrow.OSFile(str(folder / place / "data.arrow"), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table.slice(0, 20 if place != "parts/dev" else 5))
        (folder / place / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (folder / "parts" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test", "dev"]}))


def _texts(folder: Path) -> None:
    """Texts with labels in a file of JSON and one of Parquet, files of text, and a tokenizer."""
    words = [f"{'Yes' if row % 2 else 'no'} it is number {row}, said {'ab' * (row % 3)}" for row in range(40)]
    made = [
        {"text": text, "title": text[:9], "label": f"k{row % 2}", "third": row % 3, "owner": row % 4}
        for row, text in enumerate(words)
    ]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, made)))
    (folder / "some.jsonl").write_text("\n".join(map(json.dumps, made[:7])))
    for row, text in enumerate(words[:12]):
        (folder / "files" / f"k{row % 2}").mkdir(parents=True, exist_ok=True)
        (folder / "files" / f"k{row % 2}" / f"{row}.txt").write_text(text)
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "Yes", "no", "it", "number", "1"])}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"pre_tokenizer": {"type": "Whitespace"}}))


def _labels(count: int) -> np.ndarray[Any, Any]:
    return (np.arange(count) % CLASSES).astype(np.uint8)


def _idx(folder: Path, generator: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for stem, count in (("train", TRAIN), ("t10k", TEST)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", _labels(count))):
            head = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))


def _cifar(folder: Path, generator: np.random.Generator) -> None:
    """All three layouts, each with images of its own."""
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for place in ("py", "bin"):
        (folder / f"cifar-10-batches-{place}").mkdir()
    for number, name in enumerate(names):
        labels = _labels(6) + number % 3
        pixels, others = generator.integers(0, 256, (2, 6, 3072), dtype=np.uint8)
        batch = {b"data": pixels, b"labels": labels.tolist()}
        (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch, protocol=2))
        records = np.concatenate([labels[:, None], others], axis=1)
        (folder / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(records.tobytes())
    part = folder / "cifar10_subset"
    part.mkdir()
    for name, count in (("train", TRAIN), ("test", TEST)):
        buffer = BytesIO()
        np.save(buffer, generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
        (part / f"x_{name}.npy.xz").write_bytes(lzma.compress(buffer.getvalue(), preset=0))
    np.savez(part / "labels.npz", y_train=_labels(TRAIN), y_test=_labels(TEST))


def _femnist(folder: Path, generator: np.random.Generator) -> None:
    folder.mkdir()
    arrays = {}
    for part, count, first in (("train", TRAIN, 0), ("test", TEST, 0), ("unseen", TEST, 9)):
        arrays[f"x_{part}"] = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"y_{part}"] = _labels(count)
        arrays[f"writer_{part}"] = (first + np.arange(count) % 3).astype(np.int16)
    np.savez(folder / "femnist_subset.npz", **arrays)


def _fsdd(folder: Path, generator: np.random.Generator) -> None:
    """Two speakers, of each digit seven takes."""
    folder.mkdir()
    speaker, digit, take = (part.ravel().astype(np.uint8) for part in np.indices((2, 10, 7)))
    offset = np.cumsum([0, *generator.integers(300, 600, 140)])
    buffer = BytesIO()
    np.save(buffer, generator.integers(-9999, 9999, offset[-1]).astype(np.int16))
    (folder / "audio.npy.xz").write_bytes(lzma.compress(buffer.getvalue(), preset=0))
    names = np.array(["ann", "bob"])
    np.savez(folder / "labels.npz", speaker=speaker, digit=digit, take=take, offset=offset, speaker_names=names)


def _shakespeare(folder: Path, generator: np.random.Generator) -> None:
    """Three roles of 900, 1,200 and 1,500 letters."""
    folder.mkdir()
    blocks = []
    for role, count in (("FOOL", 900), ("KING", 1200), ("WITCH", 1500)):
        blocks.append(f"{role}:\n{''.join(generator.choice(list('abcdefg '), count))}")
    (folder / "input.txt").write_text("\n\n".join(blocks))


def _covertype(folder: Path, generator: np.random.Generator) -> None:
    """As scikit-learn keeps it."""
    folder.mkdir()
    joblib.dump(generator.normal(size=(42, 54)), folder / "samples_py3")
    joblib.dump((np.arange(42) % 7 + 1).astype(np.int32), folder / "targets_py3")
