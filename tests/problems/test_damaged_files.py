"""Files of data whose bytes were changed are read or refused in one line: no traceback, no end of the interpreter.

What is packed is changed packed and unpacked. The long version is a process of its own for each format, which may take
2 GiB more than it has after its imports, and 5 seconds a file.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import resource
import signal
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datafiles
import numpy as np
import pytest
from PIL import Image

from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError
from fedsim.problems.datasets.arrays import NPZ
from fedsim.problems.datasets.cifar import CIFAR10
from fedsim.problems.datasets.covertype import Covertype
from fedsim.problems.datasets.femnist import FEMNIST
from fedsim.problems.datasets.fsdd import FSDD
from fedsim.problems.datasets.huggingface import HuggingFace
from fedsim.problems.datasets.idx import MNIST
from fedsim.problems.datasets.images import ImageFolder
from fedsim.problems.datasets.parquet import Parquet
from fedsim.problems.datasets.shakespeare import Shakespeare
from fedsim.problems.datasets.tables import CSV
from fedsim.problems.datasets.text import Text

SECONDS, GIBIBYTES = 5, 2
"""A file that takes longer ends the process by a signal; more memory is not given."""
IMAGES = (
    "png",
    "jpg",
    "gif",
    "bmp",
    "tif",
    "webp",
    "pgm",
    "tga",
    "pcx",
    "jp2",
    "ico",
    "avif",
    "dds",
    "qoi",
    "sgi",
    "psd",
)
FORMATS: dict[str, tuple[Any, str]] = {
    "csv": (CSV(path="table.csv", label="label", owner="owner"), "table.csv"),
    "csv of texts": (CSV(path="texts.csv", label="text", encode="one_hot", missing="fill"), "texts.csv"),
    "csv packed": (CSV(path="table.csv.gz", label="label"), "table.csv.gz"),
    "parquet": (Parquet(path="table.parquet", label="label", owner="owner"), "table.parquet"),
    "parquet of texts": (
        Parquet(path="texts.parquet", label="text", encode="one_hot", missing="fill"),
        "texts.parquet",
    ),
    "huggingface": (HuggingFace(path="saved", inputs=("image",), owner="owner"), "saved/data.arrow"),
    "huggingface parquet": (HuggingFace(path="hub", inputs=("image",), owner="owner"), "hub/train.parquet"),
    "huggingface state": (HuggingFace(path="saved", inputs=("image",)), "saved/state.json"),
    "text": (Text(path="texts.jsonl", label="label"), "texts.jsonl"),
    "text of a tokenizer": (Text(path="texts.jsonl", label="label", tokens="tokenizer.json"), "tokenizer.json"),
    "npz": (NPZ(path="arrays.npz", standardize=True), "arrays.npz"),
    "npz packed": (NPZ(path="packed.npz"), "packed.npz"),
    "npz of tokens": (NPZ(path="tokens.npz", tokens=True), "tokens.npz"),
    "idx images": (MNIST(), "MNIST/raw/train-images-idx3-ubyte.gz"),
    "idx labels": (MNIST(), "MNIST/raw/train-labels-idx1-ubyte.gz"),
    "cifar python": (CIFAR10(files="python"), "cifar-10-batches-py/data_batch_3"),
    "cifar binary": (CIFAR10(files="binary"), "cifar-10-batches-bin/data_batch_3.bin"),
    "cifar subset": (CIFAR10(files="subset"), "cifar10_subset/x_train.npy.xz"),
    "cifar labels": (CIFAR10(files="subset"), "cifar10_subset/labels.npz"),
    "femnist": (FEMNIST(), "femnist/femnist_subset.npz"),
    "fsdd audio": (FSDD(), "fsdd/audio.npy.xz"),
    "fsdd labels": (FSDD(), "fsdd/labels.npz"),
    "shakespeare": (Shakespeare(length=20, stride=40), "shakespeare/input.txt"),
    "covertype": (Covertype(), "covertype/samples_py3"),
    **{f"image {suffix}": (ImageFolder(path=suffix), f"{suffix}/a/1.{suffix}") for suffix in IMAGES},
}
"""What is loaded, and the file of it that is changed."""


def write(folder: Path) -> None:
    """Write all files that are changed."""
    datafiles.write_all(folder)
    (folder / "table.csv.gz").write_bytes(gzip.compress((folder / "table.csv").read_bytes()))
    with np.load(folder / "arrays.npz") as arrays:
        np.savez_compressed(folder / "packed.npz", **{name: arrays[name] for name in ("x", "y", "owner")})
    generator = np.random.default_rng(1)
    for suffix in IMAGES:
        for kind in ("a", "b"):
            place = folder / suffix / kind / (f"1.{suffix}" if kind == "a" else "2.png")
            place.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            if place.suffix == ".psd":
                place.write_bytes(psd(np.asarray(image)))
            else:
                (image.convert("L") if suffix == "pgm" else image).save(place)


def psd(pixels: np.ndarray[Any, Any]) -> bytes:
    """An image as Photoshop writes it, which Pillow reads alone."""
    height, width, channels = pixels.shape
    head = b"8BPS\0\1" + bytes(6) + channels.to_bytes(2) + height.to_bytes(4) + width.to_bytes(4) + b"\0\x08\0\x03"
    return head + bytes(12) + b"\0\0" + pixels.transpose(2, 0, 1).tobytes()


def changed(content: bytes, generator: np.random.Generator) -> bytes:
    """The bytes with a few of them changed, cut out, repeated, exchanged or set to numbers that mean sizes."""
    found = bytearray(content)
    for _ in range(generator.integers(1, 4)):
        # Heads say what the rest is, so that half of the changes are there.
        reach = min(len(found), 300) if generator.random() < 0.5 else len(found)
        at, width = int(generator.integers(0, max(reach, 1))), int(generator.choice([1, 1, 2, 4, 8, 40]))
        what = generator.integers(0, 6)
        if what == 0:
            found[at : at + width] = generator.bytes(width)
        elif what == 1:
            del found[at : at + width]
        elif what == 2:
            found[at:at] = found[at : at + width]
        elif what == 3:
            found[at : at + width] = bytes([int(generator.choice([0, 1, 127, 128, 255]))]) * width
        elif what == 4:
            del found[at:]
        elif at < len(found):
            found[at] ^= 1 << int(generator.integers(0, 8))
    return bytes(found)


def inside(name: str, content: bytes) -> tuple[bytes, Callable[[bytes], bytes]] | None:
    """What is packed in a file, and how it is packed again; of an archive, its first member. None: it is not packed."""
    if name.endswith(".gz"):
        return gzip.decompress(content), gzip.compress
    if name.endswith(".npz"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        first = next(iter(members))

        def packed(changed: bytes) -> bytes:
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w") as archive:
                for member, held in members.items():
                    archive.writestr(member, changed if member == first else held)
            return file.getvalue()

        return members[first], packed
    if name.endswith("samples_py3"):
        return content, zlib.compress
    if name.endswith(".xz"):
        return lzma.decompress(content), lambda changed: lzma.compress(changed, preset=0)
    if name.endswith(".png"):
        return content, with_sums
    return None


def with_sums(content: bytes) -> bytes:
    """A PNG with the right checksum behind each of its parts, without which nobody looks into them."""
    found, at = bytearray(content), 8
    while at + 12 <= len(found):
        end = at + 8 + int.from_bytes(found[at : at + 4])
        found[end : end + 4] = zlib.crc32(found[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(found)


def files(name: str, content: bytes, count: int) -> Iterator[bytes]:
    """So many changed files, the same every time."""
    generator, packed = np.random.default_rng(zlib.crc32(name.encode())), inside(name, content)
    for number in range(count):
        if packed is not None and number % 2:
            yield packed[1](changed(packed[0], generator))
        else:
            yield changed(content, generator)


def check(kind: str, folder: Path, count: int) -> int:
    """Load changed files of a format: how many are refused."""
    loader, name = FORMATS[kind]
    place, refused = folder / name, 0
    sound = place.read_bytes()
    try:
        for content in files(name, sound, count):
            place.write_bytes(content)
            signal.alarm(SECONDS)
            line = said(loader, folder)
            signal.alarm(0)
            assert "\n" not in line, line
            refused += line != ""
    except BaseException:
        (folder / "culprit").write_bytes(content)
        raise
    finally:
        place.write_bytes(sound)
    return refused


def said(loader: Any, folder: Path) -> str:
    """What a file is refused with; nothing, if it is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            loader.load(DataFolder(folder))
        except InputError as error:
            return str(error)
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("damaged")
    write(place)
    return place


@pytest.mark.parametrize("kind", FORMATS)
def test_a_few_changed_files_are_read_or_refused(kind, folder):
    assert check(kind, folder, 12) > 0  # else nothing was changed that matters
    FORMATS[kind][0].load(DataFolder(folder))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", FORMATS)
def test_thousands_of_changed_files_are_read_or_refused(kind, folder):
    places = {**os.environ, "PYTHONPATH": str(Path(datafiles.__file__).parent)}
    line = [sys.executable, __file__, kind, str(folder), "2000"]
    done = subprocess.run(line, capture_output=True, text=True, env=places)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    assert int(done.stdout.split()[0]) > 100


if __name__ == "__main__":
    kind, place, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    FORMATS[kind][0].load(DataFolder(place))  # with all imports
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + GIBIBYTES * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(check(kind, place, count), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, "MiB")
