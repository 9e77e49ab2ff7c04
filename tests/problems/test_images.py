"""Folders of images."""

import numpy as np
from datafiles import NOWHERE, refusal

from fedsim.problems.datasets import DataFolder
from fedsim.problems.datasets.images import ImageFolder


def picture(path, value, width=4, height=3):
    from PIL import Image

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
    refusal(ImageFolder(path="mine"), folder, "no <class>/*.png")
    picture(tmp_path / "mine" / "a" / "1.png", (1, 1, 1), 4, 4)
    picture(tmp_path / "mine" / "a" / "2.png", (1, 1, 1), 5, 4)
    refusal(ImageFolder(path="mine"), folder, "2.png", "is 5 x 4 pixels, not 4 x 4")
    refusal(ImageFolder(path="mine", size=8), folder, "1.png", "not 8 x 8")
    sound = (tmp_path / "mine" / "a" / "1.png").read_bytes()
    for content in (b"", b"text", sound[:-30]):
        (tmp_path / "mine" / "a" / "1.png").write_bytes(content)
        refusal(ImageFolder(path="mine"), folder, "1.png", "cannot be read as an image")
