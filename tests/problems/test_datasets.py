"""Data sets: what is read is what was written, and a bad file is one line."""

import gzip
import hashlib
import importlib.util
import io
import lzma
import os
import pickle
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from datafiles import NOWHERE, refusal, write_all
from sklearn import datasets as published

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.problems.datasets import DataFolder, Dataset, embedded
from fedsim.problems.datasets.base import split_off, standardise
from fedsim.problems.datasets.cifar import CIFAR10
from fedsim.problems.datasets.covertype import Covertype
from fedsim.problems.datasets.embedded import BreastCancer, Digits
from fedsim.problems.datasets.femnist import FEMNIST
from fedsim.problems.datasets.fsdd import FSDD
from fedsim.problems.datasets.idx import MNIST, FashionMNIST, read_idx
from fedsim.problems.datasets.sensors import Sensors
from fedsim.problems.datasets.shakespeare import Shakespeare
from fedsim.problems.datasets.shifted_digits import ShiftedDigits
from fedsim.problems.datasets.synthetic import CHUNK, Synthetic


@pytest.fixture
def real():
    """The folder of real data; only where the environment names one."""
    named = os.environ.get("FEDSIM_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("FEDSIM_DATA names no folder of data files")
    return DataFolder(Path(named))


# The shared parts


def test_split_takes_the_share_of_each_stratum_and_every_example_once():
    strata = np.repeat([7, 8, 9], [10, 5, 1])
    train, test = split_off(strata, 16, 0.3, 0)
    assert sorted([*train, *test]) == list(range(16))
    # 0.3 * 10 = 3; 0.3 * 5 = 1.5, rounded up to 2; a single example is kept for training.
    assert np.unique(strata[test], return_counts=True)[1].tolist() == [3, 2]
    assert (np.diff(train) > 0).all()


def test_standardise_uses_the_training_part_alone_and_survives_a_constant():
    x = np.array([[1.0, 5.0], [3.0, 5.0]], np.float32)
    x_test = np.array([[5.0, 6.0]], np.float32)
    standardise(x, x_test)
    # Mean 2 and deviation 1 for the first feature; the second is constant and only shifted.
    assert x.tolist() == [[-1, 0], [1, 0]]
    assert x_test.tolist() == [[3, 1]]


def test_standardise_is_per_channel_for_images():
    x = np.stack([np.arange(8.0).reshape(2, 2, 2), 10 * np.ones((2, 2, 2))], axis=1).astype(np.float32)
    standardise(x, np.empty((0, 2, 2, 2), np.float32))
    np.testing.assert_allclose(x[:, 0].std(), 1, rtol=1e-6)
    assert (x[:, 1] == 0).all()


def test_a_dataset_refuses_arrays_that_do_not_fit():
    x, y = np.zeros((3, 2), np.float32), np.array([0, 1, 2])
    none = (np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    with pytest.raises(InputError, match="3 training inputs have 2 labels"):
        Dataset("mine", x, y[:2], *none, 3)
    with pytest.raises(InputError, match=r"labels lie in 0 \.\. 2, not in 0 \.\. 1"):
        Dataset("mine", x, y, *none, 2)
    with pytest.raises(InputError, match="and 1 owners"):
        Dataset("mine", x, y, *none, 3, owner=np.zeros(1, np.int64))
    with pytest.raises(InputError, match=r"shape \(2,\), a test input \(4,\)"):
        Dataset("mine", x, y, np.zeros((0, 4)), none[1], 3)
    with pytest.raises(InputError, match="no training example"):
        Dataset("mine", *none, x, y, 3)
    for other, found in (
        (torch.zeros(3, 2), "a Tensor"),
        (x.tolist(), "a list"),
        (x.astype(object), "an array of obj"),
    ):
        with pytest.raises(InputError, match=f"its training inputs are {found}"):
            Dataset("mine", other, y, *none, 3)  # type: ignore[arg-type]
    for wrong in (np.nan, np.inf, -np.inf):
        x[1, 0] = wrong
        with pytest.raises(InputError, match=r"its test inputs are not finite at \[1, 0\]; leave that out, or fill it"):
            Dataset("mine", np.ones((3, 2)), y, x, y, 3)
    Dataset("mine", np.full((3, 2), 1e308), y, *none, 3)
    for padding, vocabulary in ((4, 4), (-1, 4), (0, 0)):
        with pytest.raises(InputError, match=f"padding is token {padding}, and the vocabulary has {vocabulary}"):
            Dataset("mine", y[:, None], y, y[:, None], y, 3, vocabulary=vocabulary, padding=padding)
    Dataset("mine", y[:, None], y, y[:, None], y, 3, vocabulary=4, padding=3)


def test_the_data_folder_is_the_argument_or_else_the_environment(tmp_path, monkeypatch):
    (tmp_path / "a.bin").write_bytes(b"")
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    assert DataFolder().find("b.bin", "a.bin") == tmp_path / "a.bin"
    elsewhere = DataFolder(tmp_path / "other")
    with pytest.raises(InputError) as caught:
        elsewhere.find("a.bin", "b.bin")
    for part in ("data-dir", str(tmp_path / "other/a.bin"), str(tmp_path / "other/b.bin"), "FEDSIM_DATA"):
        assert part in str(caught.value)
    monkeypatch.delenv("FEDSIM_DATA")
    with pytest.raises(InputError, match=r"data-dir = \(not set\): a.bin is needed; pass --data-dir"):
        DataFolder().find("a.bin")


def test_a_run_says_where_its_data_are_from(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("a,job,y\n" + "".join(f"{i},{'xyz'[i % 3]},{'pq'[i % 2]}\n" for i in range(10)))
    made = fedsim.experiment(
        rounds=1,
        problem={
            "dataset": {"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "y", "encode": "one_hot"},
            "model": "logistic",
        },
        partition={"kind": "iid", "clients": 2},
    )
    result = fedsim.run(made, out=tmp_path / "run")
    noted = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["data"]
    assert noted["files"] == {str(tmp_path / "t.csv"): hashlib.sha256((tmp_path / "t.csv").read_bytes()).hexdigest()}
    assert (noted["name"], noted["examples"], noted["test_examples"], noted["shape"]) == ("t", 8, 2, [4])
    assert noted["classes"] == ["p", "q"]
    dataset, (number, text) = result.problem.dataset, noted["features"]
    assert text == {"name": "job", "encoding": "one_hot", "categories": ["x", "y", "z"]}
    # The numbers give back what was in the file: the examples are its rows 0 .. 9.
    back = np.concatenate([dataset.x, dataset.x_test])[:, 0] * number["deviation"] + number["mean"]
    np.testing.assert_allclose(sorted(back), range(10), atol=1e-5)
    # The folder is an experiment file, and the checksum of the arrays is that of each run on them.
    again = fedsim.run(tmp_path / "run" / "config.toml", out=tmp_path / "again")
    assert again.config["data"]["sha256"] == noted["sha256"] == dataset.provenance()["sha256"]


@pytest.mark.parametrize("part", ["x", "y", "x_test", "y_test", "owner", "owner_test"])
def test_the_checksum_of_data_is_of_all_of_them(part):
    def made():
        x, y = np.zeros((3, 2), np.float32), np.array([0, 1, 1])
        return Dataset("mine", x, y, x.copy(), y.copy(), 2, owner=y.copy(), owner_test=y.copy())

    data = made()
    before = data.provenance()["sha256"]
    assert made().provenance()["sha256"] == before
    getattr(data, part)[-1] -= 1
    assert data.provenance()["sha256"] != before
    short = replace(made(), x=np.zeros((3, 2), np.float64))
    assert short.provenance()["sha256"] != before


@pytest.mark.parametrize("loader", [BreastCancer(), MNIST(standardize=True)], ids=["table", "images"])
def test_the_numbers_of_standardising_are_told(loader, tmp_path):
    write_mnist(tmp_path)
    data = loader.load(DataFolder(tmp_path))
    mean, deviation = (np.array(data.told["features"][name]) for name in ("mean", "deviation"))
    if data.name == "mnist":
        back = data.x * deviation + mean
        np.testing.assert_allclose(back, MNIST().load(DataFolder(tmp_path)).x, atol=1e-6)
    else:
        assert len(mean) == len(deviation) == 30
        assert 600 < mean[3] < 700  # area of a cell


# scikit-learn's


def test_digits_are_the_published_ones_split_by_class():
    data = Digits().load(NOWHERE)
    counts = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    assert (np.bincount(data.y) + np.bincount(data.y_test)).tolist() == counts.tolist()
    assert np.bincount(data.y_test).tolist() == np.floor(0.2 * counts + 0.5).tolist()
    assert data.x.dtype == np.float32
    assert data.x.shape[1:] == (64,)
    assert (data.x.min(), data.x.max()) == (0, 1)


@pytest.mark.parametrize(
    ("made", "name", "load"),
    [(Digits(), "digits", published.load_digits), (BreastCancer(), "breast_cancer", published.load_breast_cancer)],
)
def test_what_scikit_learn_carries_is_as_its_own_loader_has_it(made, name, load, monkeypatch, tmp_path):
    x, y = load(return_X_y=True)
    read, labels = embedded.carried(name)
    assert read.dtype == x.dtype
    assert read.tobytes() == x.tobytes()
    assert labels.tolist() == y.tolist()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=[tmp_path]))
    with pytest.raises(InputError, match=rf"^problem\.dataset = {name}: scikit-learn .* does not carry"):
        made.load(NOWHERE)


def test_the_split_follows_its_seed_and_share_only():
    again, other = Digits().load(NOWHERE), Digits(split_seed=1).load(NOWHERE)
    assert np.array_equal(Digits().load(NOWHERE).x_test, again.x_test)
    assert not np.array_equal(other.x_test, again.x_test)
    assert len(Digits(test_share=0.0).load(NOWHERE).x) == 1797


def test_each_client_reads_the_digits_with_a_sensor_of_its_own():
    """What it reads, put back by its scale and offset, is its part of the digits."""
    sensors, plain = Sensors(clients=4, split_seed=3), np.round(embedded.carried("digits")[0])
    data, (scale, offset) = sensors.load(DataFolder(None)), sensors.readings(64)
    assert len(np.unique(scale)) == len(np.unique(offset)) == 4 * 64
    found = [np.round((x - offset[o]) / scale[o] * 16) for x, o in zip(data.x, data.owner, strict=True)]
    found += [np.round((x - offset[o]) / scale[o] * 16) for x, o in zip(data.x_test, data.owner_test, strict=True)]
    assert sorted(map(bytes, np.array(found, np.uint8))) == sorted(map(bytes, plain.astype(np.uint8)))
    assert np.bincount(data.owner_test).tolist() == [149, 148, 148, 148]
    assert not np.isclose(Sensors(clients=4, split_seed=4).readings(64)[0], scale).any()
    alike = Sensors(clients=4, scale=0.0, offset=0.0).readings(64)
    np.testing.assert_array_equal(alike, np.stack((np.ones((4, 64)), np.zeros((4, 64)))))
    with pytest.raises(InputError, match="each needs two"):
        Sensors(clients=900).load(DataFolder(None))


def test_groups_of_clients_call_the_digits_by_other_names():
    """Three groups of four clients are 0, 3 and 6 further; taken back, the labels are the digits'."""
    data, (x, y) = ShiftedDigits(clients=4, groups=3, split_seed=3).load(DataFolder(None)), embedded.carried("digits")
    label = {bytes(row): int(own) for row, own in zip(x.astype(np.uint8), y, strict=True)}
    for images, found, owners in ((data.x, data.y, data.owner), (data.x_test, data.y_test, data.owner_test)):
        plain = np.array([label[bytes(row)] for row in np.round(images * 16).astype(np.uint8)])
        assert found.tolist() == ((plain + np.array([0, 3, 6, 0])[owners]) % 10).tolist()
    assert np.bincount(data.owner_test).tolist() == [149, 148, 148, 148]
    assert len(data.x) + len(data.x_test) == 1797
    assert set(np.bincount(ShiftedDigits().load(DataFolder(None)).owner).tolist()) == {60}
    with pytest.raises(InputError, match="each needs two"):
        ShiftedDigits(clients=900).load(DataFolder(None))


def test_breast_cancer_is_standardised_by_its_training_part():
    data = BreastCancer().load(NOWHERE)
    assert (np.bincount(data.y) + np.bincount(data.y_test)).tolist() == [212, 357]
    np.testing.assert_allclose(data.x.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(data.x.std(axis=0), 1, rtol=1e-4)


# idx files


def idx(array):
    head = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_mnist(folder, packed=True, n=5, m=3):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", n), ("t10k", m)):
        images = np.arange(count * 784).reshape(count, 28, 28) % 256
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(count))):
            content = idx(array)
            name = f"{stem}-{kind}-ubyte"
            (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["MNIST/raw", "."])
def test_mnist_is_read_packed_or_not_in_either_place(tmp_path, packed, place):
    write_mnist(tmp_path / place, packed)
    data = MNIST().load(DataFolder(tmp_path))
    assert data.x.shape == (5, 1, 28, 28)
    assert data.x.dtype == np.float32
    # Pixel 300 of the images in a row is byte 300 mod 256 = 44.
    assert data.x.ravel()[300] == np.float32(44) / np.float32(255)
    assert data.y.tolist() == [0, 1, 2, 3, 4]
    assert data.y_test.tolist() == [0, 1, 2]
    standard = MNIST(standardize=True).load(DataFolder(tmp_path))
    assert abs(standard.x.mean()) < 1e-6
    assert abs(standard.x.std() - 1) < 1e-6


def test_bad_idx_files_are_one_line_each(tmp_path):
    raw, folder = tmp_path / "FashionMNIST" / "raw", DataFolder(tmp_path)
    refusal(FashionMNIST(), folder, str(raw / "train-images-idx3-ubyte.gz"), "data-dir")
    write_mnist(raw)
    images, labels = raw / "train-images-idx3-ubyte.gz", raw / "train-labels-idx1-ubyte.gz"
    sound = images.read_bytes()

    images.write_bytes(sound[: len(sound) // 2])
    refusal(FashionMNIST(), folder, str(images), "cannot be read as an idx file")
    images.write_bytes(sound[:40] + bytes((sound[40] ^ 255,)) + sound[41:])
    refusal(FashionMNIST(), folder, str(images), "cannot be read as an idx file")
    images.write_bytes(gzip.compress(b"\x00\x00\x0b\x03" + gzip.decompress(sound)[4:]))
    refusal(FashionMNIST(), folder, "it begins with 00 00 0b 03")
    images.write_bytes(gzip.compress(gzip.decompress(sound)[:-1]))
    refusal(FashionMNIST(), folder, "holds 3919 bytes where its head announces 3920")
    images.write_bytes(gzip.compress(idx(np.zeros((5, 27, 28)))))
    refusal(FashionMNIST(), folder, "27 x 28, not 28 x 28")
    images.write_bytes(sound)
    labels.write_bytes(gzip.compress(idx(np.zeros(4))))
    refusal(FashionMNIST(), folder, str(labels), "4 labels for 5 images")
    labels.write_bytes(gzip.compress(idx(np.full(5, 10))))
    refusal(FashionMNIST(), folder, "label 10, above 9")


def test_the_published_labels_have_the_published_counts(real):
    counts = {
        "MNIST": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "FashionMNIST": [6000] * 10,
    }
    for name, expected in counts.items():
        labels = read_idx(real.find(f"{name}/raw/train-labels-idx1-ubyte.gz"), 1)
        assert np.bincount(labels).tolist() == expected
    data = MNIST().load(real)
    assert (data.x.shape, data.x_test.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    # The published mean and deviation of MNIST's training pixels.
    np.testing.assert_allclose([data.x.mean(), data.x.std()], [0.1307, 0.3081], atol=1e-4)


# CIFAR-10


def cifar_batches(folder, layout):
    """Five batches of 2 and a test of 2 images, equal in all layouts; returns those of training."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    labels = np.arange(12) % 10
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    place = folder / f"cifar-10-batches-{'py' if layout == 'python' else 'bin'}"
    place.mkdir()
    for number, name in enumerate(names):
        x, y = pixels[2 * number : 2 * number + 2], labels[2 * number : 2 * number + 2]
        if layout == "python":
            batch = {b"data": x, b"labels": y.tolist(), b"batch_label": name.encode()}
            (place / name).write_bytes(pickle.dumps(batch, protocol=2))
        else:
            records = np.concatenate([y[:, None].astype(np.uint8), x], axis=1)
            (place / f"{name}.bin").write_bytes(records.tobytes())
    return pixels[:10].reshape(-1, 3, 32, 32), labels[:10]


@pytest.mark.parametrize("layout", ["python", "binary"])
def test_cifar_batches_of_both_layouts(tmp_path, layout):
    pixels, labels = cifar_batches(tmp_path, layout)
    data = CIFAR10().load(DataFolder(tmp_path))
    assert data.name == "cifar10"
    np.testing.assert_array_equal(data.x, pixels.astype(np.float32) / 255)
    assert data.y.tolist() == labels.tolist()
    assert data.y_test.tolist() == [0, 1]
    other = "binary" if layout == "python" else "python"
    refusal(CIFAR10(files=other), DataFolder(tmp_path), "data_batch_1")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_cifar_reads_every_pickle_protocol_and_text_keys(tmp_path, protocol):
    pixels, _ = cifar_batches(tmp_path, "python")
    for path in (tmp_path / "cifar-10-batches-py").iterdir():
        batch = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps({key.decode(): value for key, value in batch.items()}, protocol))
    assert np.array_equal(CIFAR10().load(DataFolder(tmp_path)).x, pixels.astype(np.float32) / 255)


class Dangerous:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_cifar_pickles_cannot_run_anything(tmp_path):
    cifar_batches(tmp_path, "python")
    victim = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    victim.write_bytes(pickle.dumps({b"data": Dangerous(str(tmp_path / "made"))}, protocol=2))
    refusal(CIFAR10(), DataFolder(tmp_path), str(victim), "mkdir, which plain data do not need")
    assert not (tmp_path / "made").exists()


class ForgedType:
    """A type with a field of objects, which its flags deny."""

    def __reduce__(self):
        return np.dtype, ("V8", False, True), (3, "|", None, ("f",), {"f": (np.dtype("O"), 0)}, 8, 1, 0)


class ForgedRows:
    """An array of it, whose bytes would be taken for objects."""

    def __reduce__(self):
        reconstruct = np.empty(1).__reduce__()[0]
        return reconstruct, (np.ndarray, (0,), b"b"), (1, (10,), ForgedType(), False, b"A" * 80)


@pytest.mark.parametrize(
    "batch",
    [
        {b"data": ForgedRows(), b"labels": [0]},
        {b"data": [ForgedRows()] * 2, b"labels": [0, 0]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [ForgedRows()]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": np.array([None])},
        {b"data": np.zeros((1, 3072), "f4,O")[:0], b"labels": []},
        {b"data": np.zeros((1, 3072), np.uint8).tolist(), b"labels": [0]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [True]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [[[0] * 10] * 10] * 10},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [2**70]},
        {b"data": np.zeros((0, 3072), np.uint8), b"labels": []},
    ],
)
def test_cifar_pickles_have_plain_arrays_alone(tmp_path, batch):
    cifar_batches(tmp_path, "python")
    victim = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    victim.write_bytes(pickle.dumps(batch, protocol=2))
    refusal(CIFAR10(), DataFolder(tmp_path), str(victim))


@pytest.mark.parametrize("compress", [0, 9])
def test_covertype_is_what_scikit_learn_keeps_and_runs_nothing(tmp_path, compress):
    place = tmp_path / "covertype"
    place.mkdir()
    x = np.random.default_rng(0).normal(size=(70, 54))
    joblib.dump(x, place / "samples_py3", compress=compress)
    joblib.dump((np.arange(70) % 7 + 1).astype(np.int32), place / "targets_py3", compress=compress)
    data = Covertype(test_share=0.0).load(DataFolder(tmp_path))
    assert np.array_equal(data.x, x.astype(np.float32))
    assert data.y.tolist() == [i % 7 for i in range(70)]
    for forged in (
        Dangerous(str(tmp_path / "made")),
        np.array([None]),
        np.zeros((70, 53)),
        {},
        np.full((70, 54), np.nan),
    ):
        joblib.dump(forged, place / "samples_py3", compress=compress)
        refusal(Covertype(), DataFolder(tmp_path), "samples_py3")
    assert not (tmp_path / "made").exists()
    (place / "samples_py3").unlink()
    refusal(Covertype(), DataFolder(tmp_path), "fetch_covtype")


def test_bad_cifar_batches_are_one_line_each(tmp_path):
    cifar_batches(tmp_path, "python")
    path, folder = tmp_path / "cifar-10-batches-py" / "data_batch_2", DataFolder(tmp_path)
    sound = path.read_bytes()
    for content, part in (
        (b"", "cannot be read as a CIFAR-10 batch"),
        (sound[:1000], "cannot be read as a CIFAR-10 batch"),
        (b"no pickle at all", "cannot be read as a CIFAR-10 batch"),
        (pickle.dumps([1]), "holds a list"),
        (pickle.dumps({b"labels": [1]}), "data"),
        (pickle.dumps({b"data": np.zeros((1, 9), np.uint8), b"labels": [1]}), "shape (1, 9)"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1, 2]}), "labels of shape (2,)"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [11]}), "labels 11 .. 11"),
    ):
        path.write_bytes(content)
        refusal(CIFAR10(), folder, str(path), part)
    path.unlink()
    refusal(CIFAR10(), folder, str(path), "was looked for")


def test_the_smaller_part_of_cifar(tmp_path):
    place = tmp_path / "cifar10_subset"
    place.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for name, part in (("train", pixels), ("test", pixels[:1])):
        buffer = io.BytesIO()
        np.save(buffer, part)
        (place / f"x_{name}.npy.xz").write_bytes(lzma.compress(buffer.getvalue(), preset=0))
    np.savez(place / "labels.npz", y_train=np.array([3, 1, 2], np.uint8), y_test=np.array([9], np.uint8))
    data = CIFAR10().load(DataFolder(tmp_path))
    assert data.name == "cifar10_subset"
    assert np.array_equal(data.x, pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    assert (data.y.tolist(), data.y_test.tolist()) == ([3, 1, 2], [9])
    standard = CIFAR10(files="subset", standardize=True).load(DataFolder(tmp_path))
    np.testing.assert_allclose(standard.x.std(axis=(0, 2, 3)), 1, rtol=1e-5)

    xz = place / "x_train.npy.xz"
    xz.write_bytes(xz.read_bytes()[:-30])
    refusal(CIFAR10(), DataFolder(tmp_path), str(xz), "xz-compressed")


# Natural clients


def femnist_archive(path, **changes):
    arrays = {}
    for part, writers in (("train", [4, 4, 2]), ("test", [2, 4]), ("unseen", [9])):
        arrays[f"x_{part}"] = np.full((len(writers), 28, 28), 51, np.uint8)
        arrays[f"y_{part}"] = np.arange(len(writers), dtype=np.uint8)
        arrays[f"writer_{part}"] = np.array(writers, np.int16)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})


def test_femnist_owners_are_writers_numbered_from_zero(tmp_path):
    path, folder = tmp_path / "femnist" / "femnist_subset.npz", DataFolder(tmp_path)
    femnist_archive(path)
    data = FEMNIST().load(folder)
    assert data.owner.tolist() == [1, 1, 0]
    assert data.owner_test.tolist() == [0, 1]
    assert (data.x == np.float32(0.2)).all()
    unseen = FEMNIST(test="unseen").load(folder)
    assert (len(unseen.x_test), unseen.owner_test) == (1, None)
    femnist_archive(path, y_test=None)
    refusal(FEMNIST(), folder, str(path), "y_test")
    femnist_archive(path, writer_test=np.array([2, 3]))
    refusal(FEMNIST(), folder, "writers without training images")
    path.write_bytes(path.read_bytes()[:500])
    refusal(FEMNIST(), folder, str(path), "cannot be read as the FEMNIST archive")


def test_the_published_femnist_part(real):
    data = FEMNIST().load(real)
    sizes = np.bincount(data.owner)
    assert (len(data.x), len(data.x_test), data.num_classes) == (14657, 1679, 62)
    assert (len(sizes), sizes.min(), np.median(sizes), sizes.max()) == (109, 7, 147, 165)
    assert np.bincount(data.owner_test, minlength=109).min() >= 1


def test_a_tone_is_a_bright_row_of_its_frequency(tmp_path):
    write_all(tmp_path)
    place = tmp_path / "fsdd"
    with np.load(place / "labels.npz") as held:
        labels = dict(held)
    # 1,000 Hz of 8,000 samples a second is an eighth of 256: of 32 bands of 125 Hz the one from 1,000 Hz, number 8, or
    # that below it, for frequency 32 of 128, the first of which is left out, is the last of band 7.
    tone = (9999 * np.sin(np.arange(labels["offset"][-1]) * np.pi / 4)).astype(np.int16)
    buffer = io.BytesIO()
    np.save(buffer, tone)
    (place / "audio.npy.xz").write_bytes(lzma.compress(buffer.getvalue(), preset=0))
    data = FSDD(standardize=False, frames=5).load(DataFolder(tmp_path))
    assert (data.x.shape, data.x_test.shape) == ((40, 1, 32, 5), (100, 1, 32, 5))
    assert (data.x[:, 0].argmax(axis=1) == 7).all()
    np.testing.assert_allclose(data.x.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    assert data.told["owners"] == ["ann", "bob"]
    assert data.owner.tolist() == [0] * 20 + [1] * 20
    for changed, part in (
        ({"offset": labels["offset"] + 1}, "divides other audio"),
        ({"digit": labels["digit"] + 1}, "digits 1 .. 10"),
        ({"take": labels["take"][1:]}, "take as uint8 of shape (139,)"),
        ({"take": labels["take"] * (1 - labels["speaker"])}, "test recordings alone"),
        ({"speaker_names": np.array(["ann"])}, "2 speakers"),
    ):
        np.savez(place / "labels.npz", **(labels | changed))
        refusal(FSDD(), DataFolder(tmp_path), str(place / "labels.npz"), part)
    with pytest.raises(InputError, match="bands = 129"):
        FSDD(bands=129)


def test_shakespeare_windows_by_hand(tmp_path):
    (tmp_path / "shakespeare").mkdir()
    text = "B:\nabcabcabca\n\nA:\nab\n\nB:\nbc\n"
    (tmp_path / "shakespeare" / "input.txt").write_text(text)
    loader = Shakespeare(length=4, stride=2, min_characters=10, test_share=0.4)
    data = loader.load(DataFolder(tmp_path))
    # Role B says "abcabcabca" + "\n" + "bc", 13 characters; int(0.4 * 13) = 5 are the test, 8 the training.
    symbols = sorted(set(text))
    words = ["".join(symbols[token] for token in row) for row in data.x]
    # Windows of 4 with a next character in "abcabcab" start at 0 and 2; "ca" + newline + "bc" has one.
    assert words == ["abca", "cabc"]
    assert [symbols[token] for token in data.y] == ["b", "a"]
    assert ["".join(symbols[token] for token in row) for row in data.x_test] == ["ca\nb"]
    assert (data.owner.tolist(), data.owner_test.tolist()) == ([0, 0], [0])
    assert data.vocabulary == data.num_classes == len(symbols)
    every = replace(loader, targets="every").load(DataFolder(tmp_path))
    assert ["".join(symbols[token] for token in row) for row in every.y] == ["bcab", "abca"]
    assert ["".join(symbols[token] for token in row) for row in every.y_test] == ["a\nbc"]
    np.testing.assert_array_equal(every.x, data.x)
    # Every character may start a window: 8 - 4 of them have 4 characters and a next one.
    assert len(Shakespeare(length=4, stride=1, min_characters=10, test_share=0.4).load(DataFolder(tmp_path)).x) == 4


def test_shakespeare_refuses_what_leaves_no_role(tmp_path):
    (tmp_path / "shakespeare").mkdir()
    path = tmp_path / "shakespeare" / "input.txt"
    path.write_text("A:\nab\n")
    refusal(Shakespeare(), DataFolder(tmp_path), "problem.dataset.min_characters = 1000")
    path.write_text("no roles at all")
    refusal(Shakespeare(), DataFolder(tmp_path), "has no block")
    path.write_bytes(b"A:\n\xff\xfe")
    refusal(Shakespeare(), DataFolder(tmp_path), "cannot be read as text")


def test_the_published_shakespeare(real):
    for least, roles in ((1000, 141), (2000, 99)):
        data = Shakespeare(min_characters=least, stride=80).load(real)
        assert data.owner.max() + 1 == roles
        assert len(np.unique(data.owner)) == roles
    assert data.vocabulary == 65
    assert (data.x.dtype, data.x.shape[1]) == (np.int64, 80)


# Synthetic


def test_synthetic_follows_its_distributions():
    data = Synthetic(clients=200, examples_per_client=200, test_share=0.0, features=5).load(NOWHERE)
    x = data.x.reshape(200, 200, 5)
    # Variance within a client is j^-1.2 (40,000 samples: standard error 0.7 %).
    np.testing.assert_allclose(x.var(axis=1).mean(axis=0), np.arange(1.0, 6) ** -1.2, rtol=0.04)
    # A client's centre is N(B, 1) around its own B ~ N(0, 1): variance 1 within, 1 between.
    centres = x.mean(axis=1)
    assert 0.7 < centres.var(axis=1, ddof=1).mean() < 1.3
    assert 0.6 < (centres.mean(axis=1).var() - 1 / 5) < 1.5
    none = Synthetic(clients=200, examples_per_client=200, test_share=0.0, features=5, beta=0.0).load(NOWHERE)
    assert none.x.reshape(200, -1).mean(axis=1).var() < 0.3


def test_synthetic_iid_labels_are_those_of_one_model():
    data = Synthetic(iid=True, clients=3, examples_per_client=50).load(NOWHERE)
    model = Streams(0).generator("synthetic/shared").standard_normal((61, 10), dtype=np.float32)
    assert np.array_equal(data.y, (data.x @ model[:-1] + model[-1]).argmax(axis=1))
    np.testing.assert_allclose(data.x.mean(axis=0), 0, atol=0.4)


def test_synthetic_alpha_moves_no_label_and_the_other_options_do():
    base = Synthetic(clients=20, examples_per_client=100)
    data = base.load(NOWHERE)
    shifted = Synthetic(clients=20, examples_per_client=100, alpha=5.0).load(NOWHERE)
    # u_k is added to every logit of an input alike; single precision may turn a near tie.
    assert (shifted.y != data.y).mean() < 0.005
    for other in (
        Synthetic(clients=20, examples_per_client=100, beta=3.0),
        Synthetic(clients=20, examples_per_client=100, seed=1),
        Synthetic(clients=20, examples_per_client=100, iid=True),
    ):
        assert (other.load(NOWHERE).y != data.y).mean() > 0.2
    assert np.array_equal(base.load(NOWHERE).x, data.x)


def test_synthetic_sizes_owners_and_test_share():
    data = Synthetic(clients=40, max_examples=300).load(NOWHERE)
    sizes = np.bincount(data.owner) + np.bincount(data.owner_test)
    assert sizes.min() >= 50
    assert sizes.max() == 300
    assert (np.bincount(data.owner_test) == np.floor(0.1 * sizes + 0.5)).all()
    assert Synthetic(clients=40).load(NOWHERE).owner.size > data.owner.size
    small = Synthetic(clients=2, examples_per_client=1, test_share=0.9, features=3, classes=2).load(NOWHERE)
    assert (small.x.shape, len(small.x_test), small.num_classes) == ((2, 3), 0, 2)


def test_synthetic_clients_do_not_depend_on_the_chunks_after_them():
    few = Synthetic(clients=CHUNK, examples_per_client=2, features=3, test_share=0.5).load(NOWHERE)
    more = Synthetic(clients=CHUNK + 5, examples_per_client=2, features=3, test_share=0.5).load(NOWHERE)
    assert np.array_equal(more.x[:CHUNK], few.x)
    assert np.array_equal(more.y_test[:CHUNK], few.y_test)
    assert len(np.unique(more.x[:, 0])) == CHUNK + 5


def test_synthetic_refuses_impossible_options():
    for options, name in (
        ({"clients": 0}, "clients"),
        ({"alpha": -1.0}, "alpha"),
        ({"beta": float("nan")}, "beta"),
        ({"classes": 1}, "classes"),
        ({"test_share": 1.0}, "test_share"),
        ({"examples_per_client": 3, "max_examples": 5}, "max_examples"),
    ):
        with pytest.raises(InputError) as caught:
            Synthetic(**options)
        assert caught.value.option == name


def test_models_of_the_synthetic_data_that_would_fill_the_memory_are_refused():
    # 4 clients x 3 features x 2^31 classes are 2.6e10 numbers.
    with pytest.raises(InputError, match="classes = 2147483648: with 3 features and 4 clients"):
        Synthetic(clients=4, features=3, classes=2**31)


def test_clients_without_test_examples_are_judged_on_what_they_are_trained_on():
    # Of two examples a tenth, rounded, is none.
    made = fedsim.experiment(
        rounds=1,
        problem={
            "dataset": {"kind": "synthetic", "clients": 4, "examples_per_client": 2, "features": 3, "classes": 3},
            "model": "logistic",
        },
        partition="natural",
        evaluation={"clients": True, "on": "train"},
    )
    (row,) = fedsim.run(made, save=False).history
    # All clients have as many examples, so that the mean of their accuracies is that of all examples.
    assert row["client_accuracy_mean"] == pytest.approx(row["global_train_accuracy"])
