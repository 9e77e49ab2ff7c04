"""Folders of images."""

import errno
import os
import zlib

import numpy as np
import pytest
from datafiles import NOWHERE, refusal
from PIL import Image

from fedsim.core.errors import InputError
from fedsim.problems.datasets import DataFolder
from fedsim.problems.datasets.images import ImageFolder


def picture(path, value, width=4, height=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


def test_image_folder_split_by_share_or_by_folders(tmp_path):
    for name, value in (("cat", (255, 0, 51)), ("dog", (0, 0, 0))):
        for number in range(5):
            picture(tmp_path / "one" / name / f"{number}.png", value)
    (tmp_path / "one" / "cat" / "notes.txt").write_text("not an image")
    data = ImageFolder(path="one").load(DataFolder(tmp_path))
    assert (data.x.shape, data.x_test.shape) == ((8, 3, 3, 4), (2, 3, 3, 4))
    np.testing.assert_allclose(data.x[0, :, 0, 0], [1, 0, 0.2])
    assert data.y.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]

    picture(tmp_path / "two" / "train" / "b" / "1.PNG", (9, 9, 9))
    picture(tmp_path / "two" / "train" / "a" / "1.jpg", (9, 9, 9))
    picture(tmp_path / "two" / "test" / "b" / "1.jpeg", (9, 9, 9))
    data = ImageFolder(path=str(tmp_path / "two"), color="gray").load(NOWHERE)
    assert (data.x.shape, data.y.tolist(), data.y_test.tolist()) == ((2, 1, 3, 4), [0, 1], [1])


def test_bad_image_folders_are_one_line_each(tmp_path):
    folder = DataFolder(tmp_path)
    refusal(ImageFolder(path="mine"), folder, str(tmp_path / "mine"), "no such file or folder")
    (tmp_path / "mine").mkdir()
    refusal(ImageFolder(path="mine"), folder, "no <class>/ with images")
    picture(tmp_path / "mine" / "a" / "1.png", (1, 1, 1), 4, 4)
    picture(tmp_path / "mine" / "a" / "2.png", (1, 1, 1), 5, 4)
    refusal(ImageFolder(path="mine"), folder, "2.png", "is 5 x 4 pixels, not 4 x 4")
    refusal(ImageFolder(path="mine", size=8), folder, "1.png", "not 8 x 8")
    sound = (tmp_path / "mine" / "a" / "1.png").read_bytes()
    for content in (b"", b"text", sound[:-30]):
        (tmp_path / "mine" / "a" / "1.png").write_bytes(content)
        refusal(ImageFolder(path="mine"), folder, "1.png", "cannot be read as an image")


def test_a_file_that_the_system_does_not_read_is_refused_by_name(tmp_path, monkeypatch):
    def fails(file, **how):
        raise OSError(errno.EIO, "Input/output error")

    picture(tmp_path / "a" / "1.png", (1, 1, 1))
    (tmp_path / "a" / "noted").write_text("a note")
    monkeypatch.setattr(Image, "open", fails)
    refusal(ImageFolder(path=str(tmp_path)), NOWHERE, str(tmp_path / "a" / "noted"), "cannot be read: input/output")


def written(tmp_path, image, name, **how):
    """A folder of one class with an image, and one with another of the same size."""
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir(exist_ok=True)
    image.save(tmp_path / "a" / name, **how)
    Image.new("L", image.size).save(tmp_path / "b" / "black.png")
    return ImageFolder(path=str(tmp_path), color="gray", test_share=0.0)


GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
PLAIN = Image.fromarray(GREY)
LOSSLESS = ("png", "bmp", "gif", "tif", "tiff", "webp", "pgm", "tga", "pcx", "dib", "sgi", "jp2", "PNG", "apng")


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_every_format_that_pillow_opens(tmp_path, suffix):
    how = {"lossless": True} if suffix == "webp" else {"format": "PNG"} if suffix == "apng" else {}
    image = PLAIN.convert("RGB") if suffix == "webp" else PLAIN
    data = written(tmp_path, image, f"1.{suffix}", **how).load(NOWHERE)
    np.testing.assert_array_equal(data.x[0, 0], GREY.astype(np.float32) / 255)


def test_an_image_is_one_whatever_it_is_called(tmp_path):
    loader = written(tmp_path, PLAIN, "without_suffix", format="PNG")
    (tmp_path / "a" / "notes.txt").write_text("nothing to see")
    PLAIN.save(tmp_path / "a" / "picture.dat", format="BMP")
    assert len(loader.load(NOWHERE).x) == 3


DEEP = (np.arange(48).reshape(6, 8) * 1365).astype(np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_sixteen_bits_are_scaled_by_all_of_them(tmp_path, suffix):
    loader = written(tmp_path, Image.fromarray(DEEP), f"1.{suffix}")
    np.testing.assert_allclose(loader.load(NOWHERE).x[0, 0], DEEP / 65535, atol=1e-6)
    colored = ImageFolder(path=str(tmp_path), test_share=0.0).load(NOWHERE).x[0]
    assert colored.shape == (3, 6, 8)
    assert (colored == colored[0]).all()
    scaled = ImageFolder(path=str(tmp_path), color="gray", test_share=0.0, resize=2).load(NOWHERE).x[0, 0]
    # Halves and thirds of a ramp have means that lie on a ramp.
    assert scaled.shape == (2, 2)
    assert 0 < scaled[0, 0] < scaled[0, 1] < scaled[1, 0] < scaled[1, 1] < 1


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_of_an_unknown_range_are_refused(tmp_path, kind):
    loader = written(tmp_path, Image.fromarray(DEEP.astype(kind)), "1.tif")
    refusal(loader, NOWHERE, "1.tif", "32 bits")


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_the_same_picture(tmp_path, mode):
    bright = Image.fromarray(np.where(GREY > 120, 255, 0).astype(np.uint8)).convert("RGB")
    image = bright.quantize(4) if mode == "P" else bright.convert(mode)
    data = written(tmp_path, image, f"1.{'tif' if mode in ('CMYK', 'YCbCr') else 'png'}").load(NOWHERE)
    np.testing.assert_allclose(data.x[0, 0], GREY > 120, atol=0.02)


def test_a_photograph_stands_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    loader = written(tmp_path, PLAIN, "1.png", exif=exif)
    (tmp_path / "b" / "black.png").unlink()
    Image.new("L", (6, 8)).save(tmp_path / "b" / "black.png")
    np.testing.assert_array_equal(loader.load(NOWHERE).x[0, 0], np.rot90(GREY, -1).astype(np.float32) / 255)


@pytest.mark.parametrize("suffix", ["gif", "png", "tif"])
def test_of_several_images_the_first_is_taken_only_when_it_is_asked_for(tmp_path, suffix):
    others = [Image.fromarray(GREY + step) for step in (3, 7)]
    loader = written(tmp_path, PLAIN, f"1.{suffix}", save_all=True, append_images=others)
    refusal(loader, NOWHERE, f"1.{suffix}", 'animated = "first"')
    first = ImageFolder(path=str(tmp_path), color="gray", animated="first", test_share=0.0).load(NOWHERE)
    np.testing.assert_array_equal(first.x[0, 0], GREY.astype(np.float32) / 255)


def test_views_that_a_phone_keeps_beside_a_photograph_do_not_count(tmp_path):
    loader = written(tmp_path, PLAIN, "1.jpg", format="MPO", save_all=True, append_images=[PLAIN])
    np.testing.assert_allclose(loader.load(NOWHERE).x[0, 0], GREY / 255, atol=0.05)


def test_what_is_no_picture_is_passed_over_and_what_is_no_class_is_refused(tmp_path):
    loader = written(tmp_path, PLAIN, "1.png")
    for name in ("a/Thumbs.db", "a/desktop.ini", "a/.DS_Store", "a/._1.png", "b/read.me", "list.csv", ".hidden.png"):
        (tmp_path / name).write_bytes(b"\0\5\26\7no picture")
    for name in (".cache", "__MACOSX", "@eaDir"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"no picture")
    data = loader.load(NOWHERE)
    assert (len(data.x), data.told["classes"]) == (2, ["a", "b"])
    (tmp_path / "b" / "more").mkdir()
    PLAIN.save(tmp_path / "b" / "more" / "2.png")
    assert loader.load(NOWHERE).y.tolist() == [0, 1, 1]
    (tmp_path / "c").mkdir()
    refusal(loader, NOWHERE, "class 'c' has no image")
    (tmp_path / "c").rmdir()
    PLAIN.save(tmp_path / "loose.png")
    refusal(loader, NOWHERE, "loose.png", "no folder of a class")
    (tmp_path / "loose.png").rename(tmp_path / "a" / "photo.HEIC")
    refusal(loader, NOWHERE, "photo.HEIC", "not read")
    (tmp_path / "a" / "photo.HEIC").unlink()
    os.mkfifo(tmp_path / "a" / "pipe")
    refusal(loader, NOWHERE, "pipe", "neither a file nor a folder")
    refusal(ImageFolder(path=str(tmp_path / "a" / "1.png")), NOWHERE, "is a file")


@pytest.mark.parametrize(
    ("parts", "sizes", "left_out"),
    [
        (["train", "test"], (4, 2), []),
        (["train", "val"], (4, 2), []),
        (["train", "valid"], (4, 2), []),
        (["train", "test", "val"], (4, 2), ["val"]),
        (["Train", "Test"], (4, 2), []),
        (["training", "Validation"], (4, 2), []),
        (["train"], (4, 0), []),
    ],
)
def test_folders_of_training_and_test_set(tmp_path, parts, sizes, left_out):
    for part in parts:
        for kind in ("x", "y"):
            for number in range(2 if part.lower().startswith("train") else 1):
                picture(tmp_path / part / kind / f"{number}.png", (number, 0, 0))
    loader = ImageFolder(path=str(tmp_path)) if len(parts) > 1 else ImageFolder(path=str(tmp_path), test_share=0.0)
    data = loader.load(NOWHERE)
    assert (len(data.x), len(data.x_test)) == sizes
    assert (data.told["classes"], data.told["left_out"]) == (["x", "y"], left_out)
    picture(tmp_path / "unsorted" / "1.png", (1, 1, 1))
    refusal(loader, NOWHERE, f"unsorted lies beside {parts[0]}")
    (tmp_path / "unsorted" / "1.png").unlink()
    if len(parts) > 1:
        picture(tmp_path / parts[1] / "z" / "1.png", (1, 1, 1))
        refusal(loader, NOWHERE, "the class 'z', of which there is none to train")
        refusal(ImageFolder(path=str(tmp_path), test_share=0.5), NOWHERE, "problem.dataset.test_share = 0.5")


def test_images_of_many_sizes_are_scaled(tmp_path):
    for number, size in enumerate([(3, 5), (8, 2), (4, 4), (90, 70)]):
        picture(tmp_path / "ab"[number % 2] / f"{number}.png", (255, 0, 51), *size)
    refusal(ImageFolder(path=str(tmp_path)), NOWHERE, "resize = 64")
    data = ImageFolder(path=str(tmp_path), resize=4, test_share=0.0).load(NOWHERE)
    assert data.x.shape == (4, 3, 4, 4)
    np.testing.assert_allclose(data.x[:, :, 1, 2], [[1, 0, 0.2]] * 4, atol=1e-6)
    with pytest.raises(InputError, match="size"):
        ImageFolder(path="x", size=4, resize=4)


def test_what_does_not_fit_into_memory_is_said_beforehand(tmp_path, monkeypatch):
    loader = written(tmp_path, PLAIN, "1.png")
    monkeypatch.setattr("fedsim.problems.datasets.images.MOST_PIXELS", 47)
    refusal(loader, NOWHERE, "8 x 6 pixels; at most 47")
    monkeypatch.undo()
    monkeypatch.setattr(os, "sysconf", lambda name: 10)
    refusal(loader, NOWHERE, "problem.dataset.resize", "2 x 1 x 6 x 8 numbers")
    monkeypatch.undo()
    # No image of this size is made first: this alone would take terabytes.
    refusal(ImageFolder(path=loader.path, resize=2**20), NOWHERE, "problem.dataset.resize = 1048576", "GiB")
    refusal(ImageFolder(path=loader.path, size=2**20), NOWHERE, "problem.dataset.size = 1048576", "GiB")


def test_a_folder_of_tests_without_any_is_refused(tmp_path):
    picture(tmp_path / "train" / "a" / "1.png", (1, 1, 1))
    (tmp_path / "test").mkdir()
    refusal(ImageFolder(path=str(tmp_path)), NOWHERE, "has no image")


def test_pictures_that_pillow_would_start_a_program_for_are_named(tmp_path):
    picture(tmp_path / "a" / "1.png", (1, 1, 1))
    (tmp_path / "a" / "2.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    refusal(ImageFolder(path=str(tmp_path)), NOWHERE, "2.eps", "of a kind that is not read")


def test_a_bomb_without_an_ending_is_one_line(tmp_path):
    picture(tmp_path / "a" / "1.png", (1, 1, 1))
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4) * 2 + b"\x01\0\0\0\0"
    start = zlib.crc32(header[12:]).to_bytes(4) + b"\0\0\0\0IDAT"
    (tmp_path / "a" / "bomb").write_bytes(header + start + zlib.crc32(b"IDAT").to_bytes(4))
    refusal(ImageFolder(path=str(tmp_path)), NOWHERE, "bomb", "pixels")
