"""Data sets of torchvision, by a package that stands in for it: what it is asked for, and what is made of it."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from datafiles import refusal
from PIL import Image

from fedsim.core.data_files import DataFolder
from fedsim.problems.datasets.vision import TorchVision


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What is asked of the package; its images of 4 x 4 are all of a value, and so is a label."""
    found = []

    class Held:
        def __init__(self, root, first, count, **arguments):
            found.append((root, arguments))
            self.rows = range(first, first + count)

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, row):
            value = self.rows[row]
            return Image.fromarray(np.full((4, 4, 3), value, np.uint8)), value % 3 + 1

    class CIFAR100(Held):
        def __init__(self, root, train=True, transform=None, download=False):
            if not (tmp_path / "cifar").exists():
                raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
            super().__init__(root, 0 if train else 100, 12 if train else 6, train=train, download=download)

    class SVHN(Held):
        def __init__(self, root, split="train", download=False):
            super().__init__(root, 0, 9, split=split, download=download)

    class EuroSAT(Held):
        def __init__(self, root, transform=None, download=False):
            super().__init__(root, 0, 30, download=download)

    class EMNIST(Held):
        def __init__(self, root, split, **kwargs):
            raise AssertionError

        def __new__(cls, root, split, train=True, download=False):
            return Held(root, 0, 9, split=split, train=train, download=download)

    EMNIST.__init__ = lambda self, root, split, train=True, download=False: None
    datasets = SimpleNamespace(CIFAR100=CIFAR100, SVHN=SVHN, EuroSAT=EuroSAT, EMNIST=EMNIST)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=datasets))
    (tmp_path / "cifar").mkdir()
    return found


def test_training_and_test_set_are_made_without_the_net(asked, tmp_path):
    data = TorchVision(name="CIFAR100", path="cifar").load(DataFolder(tmp_path))
    root = str(tmp_path / "cifar")
    assert asked == [(root, {"train": True, "download": False}), (root, {"train": False, "download": False})]
    assert np.array_equal(data.x, np.arange(12, dtype=np.float32)[:, None, None, None] / 255 + np.zeros((12, 3, 4, 4)))
    assert (data.x_test[0, 0, 0, 0] * 255, data.x.dtype, data.drawn) == (100, np.float32, False)
    assert data.y.tolist() == [0, 1, 2] * 4  # the package's 1 to 3
    assert data.y_test.tolist() == [1, 2, 0, 1, 2, 0]
    assert (data.num_classes, data.told["classes"]) == (3, ["1", "2", "3"])
    gray = TorchVision(name="CIFAR100", path="cifar", color="gray", resize=2, standardize=True).load(
        DataFolder(tmp_path)
    )
    assert gray.x.shape == (12, 1, 2, 2)
    assert gray.x.mean() == pytest.approx(0, abs=1e-6)


def test_parts_are_named_as_the_package_names_them(asked, tmp_path):
    TorchVision(name="SVHN", path="cifar").load(DataFolder(tmp_path))
    assert [arguments["split"] for _, arguments in asked] == ["train", "test"]
    asked.clear()
    data = TorchVision(name="EuroSAT", path="cifar", test_share=0.5).load(DataFolder(tmp_path))
    assert [arguments for _, arguments in asked] == [{"download": False}]
    assert (len(data.x), len(data.x_test), data.drawn) == (15, 15, True)
    asked.clear()
    TorchVision(name="EMNIST", path="cifar", split="letters").load(DataFolder(tmp_path))
    assert [(one["split"], one["train"]) for _, one in asked] == [("letters", True), ("letters", False)]


def test_what_cannot_be_read_is_one_line(asked, tmp_path, monkeypatch):
    folder = DataFolder(tmp_path)
    refusal(TorchVision(name="EMNIST", path="cifar"), folder, "of parts EMNIST has several; name one")
    refusal(TorchVision(name="SVHN", path="cifar", split="extra"), folder, "of parts SVHN has none; leave it out")
    refusal(TorchVision(name="SVHN", path="cifar", test_share=0.5), folder, "problem.dataset.test_share")
    (tmp_path / "cifar").rename(tmp_path / "other")
    refusal(
        TorchVision(name="CIFAR100", path="other"), folder, "cannot be read as the CIFAR100 of torchvision", "not found"
    )
    (tmp_path / "other" / "processed").mkdir()
    (tmp_path / "other" / "processed" / "training.pt").write_bytes(b"")
    refusal(TorchVision(name="SVHN", path="other"), folder, "training.pt", "unpickle; remove it")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    refusal(TorchVision(name="SVHN", path="other"), folder, "pip install 'fedsim-lab[vision]'")
