"""A person's own images: one folder a class."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedsim.core.data_files import TABLE, Array, DataFolder, hold_memory, reading
from fedsim.core.errors import InputError
from fedsim.core.files import reason
from fedsim.core.options import Fraction, NonNegativeInt, PositiveInt, options
from fedsim.problems.datasets.base import SHARE, Dataset, hold_unsplit, split_dataset, standardise, unit_scale

if TYPE_CHECKING:
    from PIL import Image

PATH = f"{TABLE}.path"
TRAINS = ("train", "training")
TESTS = ("test", "testing", "val", "valid", "validation")
"""Folders that are training and test set, however they use capitals: the first that is there."""
SYSTEM = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information")
"""What systems put beside a person's files, in small letters; and all that begins with a dot."""
FOREIGN = (
    *(".heic", ".heif", ".svg", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".jxl", ".exr", ".hdr"),
    *(".eps", ".ps", ".dcm", ".nii", ".npy", ".npz", ".mp4", ".avi", ".mov", ".mkv", ".webm"),
)
"""Pictures of kinds that are not read here unless Pillow has a plug-in for them."""
STARTING = ("EPS",)
"""Formats for which Pillow starts another program, which a file may then tell what to do."""
MOST_PIXELS = 89_478_485
"""Pixels of one image: where Pillow, too, begins to speak of a bomb."""
SHALLOW = {"PNG", "PPM"}
"""Formats whose whole numbers of 32 bits are of 16."""


@options
class ImageFolder:
    """Images in `path/<class>/`, however deep, or in `path/train/<class>/` and `path/test/<class>/` (or `val`).

    In every format that Pillow opens. Of 8 or 16 bits they become numbers from 0 to 1; they stand as their EXIF says;
    transparency is dropped. What is hidden, of the system or no picture is passed over.
    """

    path: str
    """The folder, absolute, or below the current or the data folder."""
    color: Literal["rgb", "gray"] = "rgb"
    """What images are converted to."""
    size: PositiveInt | None = None
    """Width and height that each image must have, in pixels. Not given: those of the first."""
    resize: PositiveInt | None = None
    """Width and height that each image is scaled to, in pixels, by bilinear interpolation. Not given: none is."""
    animated: Literal["refuse", "first"] = "refuse"
    """What is done with files of several images: refuse them, or take the first image."""
    test_share: Fraction = SHARE
    """Share of each class that is the test set, where there is no folder of it."""
    split_seed: NonNegativeInt = 0
    """Which examples are the test set then; it does not follow the run's seed."""
    standardize: bool = False
    """Shift and scale each channel by the mean and deviation of the training pixels."""

    def __post_init__(self) -> None:
        if self.size is not None and self.resize is not None:
            raise InputError("size", self.size, "resize makes all images of one size; leave one of the two out")

    def load(self, folder: DataFolder) -> Dataset:
        """Return x float32 [n, 3 or 1, height, width]; the classes are the folders in the order of names."""
        root = folder.resolve(self.path)
        parts, left_out = _parts(root)
        found = [_classes(part) for part in parts]
        if len(parts) > 1:
            hold_unsplit(self.test_share, f"{parts[1]} is")
            if not found[1]:
                raise InputError(
                    PATH, str(parts[1]), "is the folder of the test set and has no image; fill or remove it"
                )
        classes = sorted(found[0])
        for part, held in zip(parts, found, strict=True):
            empty = sorted(name for name in held if not held[name])
            if empty:
                fault = f"the class {empty[0]!r} has no image in {part}; remove the folder or fill it"
                raise InputError(PATH, str(root), fault)
            strange = sorted(held.keys() - found[0].keys())
            if strange:
                raise InputError(
                    PATH, str(root), f"{part} has the class {strange[0]!r}, of which there is none to train"
                )
        if not classes:
            raise InputError(PATH, str(root), "there is no <class>/ with images in this folder")
        files = [(file, classes.index(name)) for held in found for name in sorted(held) for file in held[name]]
        look = Look(self.color, self.size, self.resize, self.animated)
        x = pixels_of([(file, file) for file, _ in files], look)
        y = np.array([number for _, number in files], dtype=np.int64)
        told: dict[str, Any] = {"classes": classes, "left_out": left_out}
        if len(parts) > 1:
            n = sum(map(len, found[0].values()))
            data = Dataset(root.name, x[:n], y[:n], x[n:], y[n:], len(classes), told=told)
        else:
            data = split_dataset(root.name, x, y, len(classes), self.test_share, self.split_seed, told=told)
        if self.standardize:
            told["features"] = standardise(data.x, data.x_test)
        return data


@dataclass(frozen=True)
class Look:
    """What images are made of one form by; see the options of `ImageFolder`."""

    color: Literal["rgb", "gray"] = "rgb"
    size: int | None = None
    resize: int | None = None
    animated: Literal["refuse", "first"] = "refuse"

    @property
    def side(self) -> int | None:
        """Width and height that all have; None: those of the first."""
        return self.resize or self.size


def pixels_of(sources: Sequence[tuple[Path, Any]], look: Look) -> Array:
    """All images, float32 [n, channels, height, width].

    sources: of each what it is called, and the file, a path or an open one.
    """
    shape = _image(*sources[0], look).shape[:2] if look.side is None else (look.side, look.side)
    wanted = (len(sources), 3 if look.color == "rgb" else 1, *shape)
    option = "resize" if look.size is None else "size"
    hold_memory(wanted, f"{TABLE}.{option}", look.side, "make the images smaller by resize")
    found = np.empty(wanted, np.float32)
    for number, (file, source) in enumerate(sources):
        values = _image(file, source, look)
        if values.shape[:2] != shape:
            fault = f"is {values.shape[1]} x {values.shape[0]} pixels, not {shape[1]} x {shape[0]}"
            raise InputError(PATH, str(file), f"{fault}; give all images one size, or say resize = 64")
        pixels = values.reshape(*shape, -1).transpose(2, 0, 1)
        found[number] = unit_scale(pixels) if pixels.dtype == np.uint8 else pixels
    return found


def _image(file: Path, source: Any, look: Look) -> Array:
    """An image as it is to be looked at: uint8 [height, width] or [height, width, 3], or float32 from 0 to 1."""
    from PIL import Image, ImageOps

    with reading(file, "an image", PATH), _quiet(), _opened(source) as image:
        if image.width * image.height > MOST_PIXELS:
            fault = f"is {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are read"
            raise InputError(PATH, str(file), f"{fault}; make it smaller")
        # Beside a photograph, phones keep other views of it, and painting programs its layers.
        if look.animated == "refuse" and image.format not in ("MPO", "PSD") and getattr(image, "is_animated", False):
            fault = 'has several images; say animated = "first", or make files of them'
            raise InputError(PATH, str(file), fault)
        kind, bits = image.format, _bits(image)
        shown = ImageOps.exif_transpose(image)
        if shown.mode in ("I", "F") or shown.mode.startswith("I;16"):
            return _deep(file, np.asarray(shown), shown.mode, kind in SHALLOW, bits, look)
        converted = shown.convert("RGB" if look.color == "rgb" else "L")
        if look.resize is not None:
            converted = converted.resize((look.resize, look.resize), Image.Resampling.BILINEAR)
        return np.asarray(converted)


def _opened(source: Any) -> Image.Image:
    """An image that is read already, or what is in a file."""
    from PIL import Image

    return source if isinstance(source, Image.Image) else Image.open(source, formats=_formats())


def _deep(file: Path, values: Array, mode: str, shallow: bool, bits: int, look: Look) -> Array:
    """Grey values of more than 8 bits, from 0 to 1, in as many channels as wanted."""
    from PIL import Image

    if mode == "F" or (mode == "I" and not shallow):
        fault = "has numbers of 32 bits, of which nobody knows what is white; make 8 or 16 bits of them"
        raise InputError(PATH, str(file), fault)
    grey = values.astype(np.float32) / np.float32(2**bits - 1)
    if look.resize is not None:
        scaled = Image.fromarray(grey).resize((look.resize, look.resize), Image.Resampling.BILINEAR)
        grey = np.asarray(scaled)
    return np.repeat(grey[..., None], 3, axis=2) if look.color == "rgb" else grey


def _bits(image: Image.Image) -> int:
    """How many bits a grey value has that does not fit into 8."""
    tags: Any = getattr(image, "tag_v2", {})
    return 12 if tags.get(258) == (12,) else 16


def _formats() -> list[str]:
    from PIL import Image

    Image.init()
    return [name for name in Image.OPEN if name not in STARTING]


@contextmanager
def _quiet() -> Iterator[None]:
    """Within this block Pillow's remarks on files are not said, but the one about a bomb is an error."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(f"it has more than the {MOST_PIXELS:,} pixels that are read") from error


def _parts(root: Path) -> tuple[list[Path], list[str]]:
    """The folders of training and test set, or the folder itself; and the names of those that are left out."""
    if not root.is_dir():
        raise InputError(PATH, str(root), "is a file; name the folder in which there is one folder a class")
    folders = [place for place in sorted(root.iterdir()) if _is_folder(place)]
    trains, tests = (
        [place for name in names for place in folders if place.name.lower() == name] for names in (TRAINS, TESTS)
    )
    if not trains or not any(map(_is_folder, trains[0].iterdir())):
        return [root], []
    beside = [place for place in folders if place not in (trains[0], *tests)]
    for place in beside:
        if next(_images(place), None) is not None:
            raise InputError(
                PATH, str(root), f"{place.name} lies beside {trains[0].name} and has images; move it elsewhere"
            )
    return [trains[0], *tests[:1]], [place.name for place in tests[1:]]


def _classes(part: Path) -> dict[str, list[Path]]:
    """The images of each class, in the order of their paths. InputError: some are of no class."""
    places = sorted(part.iterdir())
    loose = next((place for place in places if place.is_file() and _is_image(place)), None)
    if loose is not None:
        raise InputError(PATH, str(loose), "is in no folder of a class; move it into one")
    return {place.name: list(_images(place)) for place in places if _is_folder(place)}


def _images(place: Path) -> Iterator[Path]:
    """The images in a folder and in the folders in it, in the order of paths. InputError: one cannot be read here."""
    for inner in sorted(place.iterdir()):
        if _is_folder(inner):
            yield from _images(inner)
        elif _is_image(inner):
            yield inner


def _is_folder(place: Path) -> bool:
    return place.is_dir() and not _is_system(place)


def _is_system(place: Path) -> bool:
    return place.name.startswith(".") or place.name.lower() in SYSTEM


def _is_image(file: Path) -> bool:
    """Whether a file is to be read: one that is called an image, or is one whatever it is called."""
    from PIL import Image, UnidentifiedImageError

    suffix = file.suffix.lower()
    if file.is_dir() or _is_system(file):
        return False
    if not file.is_file():
        raise InputError(PATH, str(file), "is neither a file nor a folder; remove it")
    Image.init()
    if Image.registered_extensions().get(suffix) in _formats():
        return True
    if suffix in FOREIGN:
        raise InputError(
            PATH, str(file), "is a picture of a kind that is not read; make a PNG of it, or move it elsewhere"
        )
    with reading(file, "an image", PATH), _quiet():
        try:
            with Image.open(file, formats=_formats()):
                return True
        except UnidentifiedImageError:
            return False
        except OSError as error:
            raise InputError(PATH, str(file), f"cannot be read: {reason(error)}") from error
