"""Every built-in selector, aggregator, transform, data set and measure, and a model, keep to what all of a kind do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import datafiles
import pytest

from fedsim.compression.econtrol import EControl
from fedsim.compression.ef14 import EF14
from fedsim.compression.ef21 import EF21
from fedsim.compression.ef21_plus import EF21Plus
from fedsim.compression.half import Half
from fedsim.compression.induced import Induced
from fedsim.compression.integer import Integer
from fedsim.compression.l_greco import LGreCo
from fedsim.compression.low_rank import LowRank
from fedsim.compression.natural import Natural
from fedsim.compression.qsgd import QSGD
from fedsim.compression.random_k import RandomK
from fedsim.compression.sign import Sign
from fedsim.compression.terngrad import TernGrad
from fedsim.compression.top_k import TopK
from fedsim.core import plugins
from fedsim.exchange.aggregation import Bulyan, GeometricMedian, Krum, Median, MultiKrum, TrimmedMean, WeightedMean
from fedsim.exchange.secure import Secure
from fedsim.exchange.transforms import Clip, Noise
from fedsim.problems.datasets.arrays import NPZ
from fedsim.problems.datasets.cifar import CIFAR10
from fedsim.problems.datasets.covertype import Covertype
from fedsim.problems.datasets.embedded import BreastCancer, Digits
from fedsim.problems.datasets.femnist import FEMNIST
from fedsim.problems.datasets.fsdd import FSDD
from fedsim.problems.datasets.huggingface import HuggingFace
from fedsim.problems.datasets.idx import MNIST, FashionMNIST
from fedsim.problems.datasets.images import ImageFolder
from fedsim.problems.datasets.parquet import Parquet
from fedsim.problems.datasets.sensors import Sensors
from fedsim.problems.datasets.shakespeare import Shakespeare
from fedsim.problems.datasets.shifted_digits import ShiftedDigits
from fedsim.problems.datasets.synthetic import Synthetic
from fedsim.problems.datasets.tables import CSV
from fedsim.problems.datasets.text import Text
from fedsim.problems.models.dense import MLP
from fedsim.server.selection.curriculum import ClientCurriculum
from fedsim.server.selection.fastest import Fastest
from fedsim.server.selection.oort import Oort
from fedsim.server.selection.poisson import Poisson
from fedsim.server.selection.power_of_choice import PowerOfChoice
from fedsim.server.selection.round_robin import RoundRobin
from fedsim.server.selection.uniform import Uniform
from fedsim.server.selection.weighted import Weighted
from fedsim.testing import conformance
from fedsim.testing.datasets import CHECKS, Loading
from fedsim.testing.specimen import EVERY, an_option_that_is_refused, every_option_moves_something
from fedsim.testing.subject import group_of, table_of

TestMLP = conformance(MLP(hidden=(4,)), others={"hidden": (3,)})
TestUniform = conformance(Uniform(count=4))
TestWeighted = conformance(Weighted(fraction=0.2))
TestRoundRobin = conformance(RoundRobin(count=4))
TestPoisson = conformance(Poisson(fraction=0.4))
TestFastest = conformance(Fastest(count=4))
TestPowerOfChoice = conformance(PowerOfChoice(count=3, pool=5))
TestPowerOfChoiceByTheLastLoss = conformance(PowerOfChoice(count=3, pool=5, loss="last"), refused=["score_examples"])
EXPLOITING = {"exploration": 0.1, "exploration_floor": 0.0}
PACED = {"pacer_step": 2}
TestOort = conformance(
    Oort(count=4),
    others={
        "exploration_floor": (0.9, {"exploration": 0.1}),
        "cut_off": (1.0, {**EXPLOITING, "augmentation": 0.0}),
        "augmentation": (1.0, {**EXPLOITING, "cut_off": 1.0}),
        "pacer_step": 2,
        "pacer_delta": (20.0, PACED),
        "pacer_flat": (0.9, PACED),
        "pacer_sharp": (0.1, PACED),
        "blacklist_share": (1.0, {"blacklist_rounds": 1}),
    },
)
TestClientCurriculum = conformance(ClientCurriculum(count=3, rounds=4))
TestClientCurriculumAtRandom = conformance(
    ClientCurriculum(count=3, rounds=4, order="random"), refused=["score_examples"]
)

TestWeightedMean = conformance(WeightedMean())
TestMedian = conformance(Median())
TestTrimmedMean = conformance(TrimmedMean())
TestKrum = conformance(Krum(malicious=1))
TestMultiKrum = conformance(MultiKrum(malicious=1, keep=4))
TestBulyan = conformance(Bulyan(malicious=1))
TestSecure = conformance(Secure(clip=10.0))
del TestSecure.test_every_option_moves_something  # they matter in rounds: see tests/running/test_secure_rounds.py
TestGeometricMedian = conformance(GeometricMedian(), others={"smoothing": 9.0, "iterations": 2, "tolerance": 0.1})

TestClip = conformance(Clip(max_norm=1.0))
TestClipOfTwo = conformance(Clip(max_norm=1.0, vectors=("delta", "second")))
TestNoise = conformance(Noise(std=0.1))
SELECTED = {
    "k": (7, {"k": 3, "ratio": None}),
    "ratio": (0.5, {"k": None, "ratio": 0.2}),
    "per": ("layer", {"k": None, "ratio": 0.2}),
}
TestTopK = conformance(TopK(ratio=0.1), others=SELECTED)
TestTopKByRice = conformance(TopK(k=3, index="rice"), others=SELECTED)
TestRandomK = conformance(RandomK(ratio=0.1), others=SELECTED)
TestQSGD = conformance(QSGD(levels=4))
TestQSGDByElias = conformance(QSGD(levels=4, code="elias", per="layer"))
TestTernGrad = conformance(TernGrad())
TestNatural = conformance(Natural())
TestSign = conformance(Sign())
TestHalf = conformance(Half())
TestHalfOfSinglesRange = conformance(Half(format="bf16"))
TestInteger = conformance(Integer(per=16))
TestIntegerAtRandom = conformance(Integer(bits=4, rounding="random"))
TestLowRank = conformance(LowRank(rank=1))
TestEF14 = conformance(EF14(decay=0.5))
SMOOTHNESS = {"smoothness": tuple(range(1, 11))}
TestEF21 = conformance(EF21(), others=SMOOTHNESS)
TestEF21OfMeans = conformance(EF21(momentum=0.3, init="dense"), others=SMOOTHNESS)
TestEF21Plus = conformance(
    EF21Plus(compressor={"kind": "top_k", "ratio": 0.2}),
    others={"compressor": "sign"},
    refused=["arrives"],
)
TestEControl = conformance(EControl())
TestLGreCo = conformance(
    LGreCo(compressor={"kind": "top_k", "ratio": 0.2}, candidates=(0.1, 0.2, 0.4), every=2),
    others={
        "compressor": {"kind": "top_k", "ratio": 0.4},
        "candidates": (0.1, 0.2),
        "alpha": 1.3,
        "errors": ("squares", {"candidates": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)}),
        "every": 1,
    },
)
TestLGreCoOfLevels = conformance(
    LGreCo(compressor={"kind": "qsgd", "levels": 4, "code": "elias"}, candidates=(2, 4, 8), every=1),
    others={
        "compressor": {"kind": "qsgd", "levels": 2},
        "candidates": (2, 4),
        "alpha": 1.5,
        "errors": ("squares", {"candidates": (2, 3, 4, 5, 6, 8)}),
    },
)
TestInduced = conformance(Induced(first="sign", second="natural"), others={"first": "half", "second": "terngrad"})

TestDigits = conformance(Digits())
TestBreastCancer = conformance(BreastCancer())
TestSensors = conformance(Sensors(clients=3))
TestShiftedDigits = conformance(ShiftedDigits(clients=3))
TestSynthetic = conformance(
    Synthetic(clients=5, features=4, classes=3, max_examples=60),
    # alpha adds the same to all logits, which changes no label but by rounding.
    others={"alpha": 1e8, "examples_per_client": (4, {"max_examples": None})},
)


def of_tables(suffix: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Other values of the options that all tables have, and what else is said with them."""
    texts = {"path": f"texts.{suffix}", "features": ["a"], "missing": "drop"}
    return {
        "owner": ("owner", {}),
        "features": (["a", "b"], {}),
        "drop": (["a"], {}),
        "numbers": (["code"], texts | {"features": ["a", "code"]}),
        "encode": ("one_hot", texts | {"features": ["a", "text"]}),
        "hash_columns": (4, texts | {"features": ["a", "text"], "encode": "hash"}),
        "missing": ("drop", texts | {"missing": "refuse"}),
        "missing_values": (["1"], texts),
        "label_ending": (".", texts),
        "merge": ({"none": ["0"]}, {}),
        "test_path": (f"tests.{suffix}", {}),
    }


FILES: dict[str, tuple[Any, dict[str, Any]]] = {
    "mnist": (MNIST(), {}),
    "fashion_mnist": (FashionMNIST(), {}),
    "cifar10": (CIFAR10(), {}),
    "cifar10 subset": (CIFAR10(files="subset"), {}),
    "femnist": (FEMNIST(), {}),
    "fsdd": (FSDD(), {}),
    "shakespeare": (Shakespeare(length=20, stride=40), {"min_characters": (1300, {})}),
    "covertype": (Covertype(), {}),
    "csv": (
        CSV(path="table.csv", label="label"),
        {
            "delimiter": (";", {}),
            "encoding": ("utf-16", {}),
            "comment": ("5", {}),
            **of_tables("csv"),
        },
    ),
    "parquet": (Parquet(path="table.parquet", label="label"), of_tables("parquet")),
    "huggingface": (
        HuggingFace(path="saved", inputs=("number", "other")),
        {
            "inputs": (["number"], {}),
            "target": ("owner", {}),
            "owner": ("owner", {}),
            "train": ("dev", {"path": "parts"}),
            "test": ("dev", {"path": "parts"}),
            "tokens": (True, {"inputs": ["grid"]}),
            "color": ("gray", {"inputs": ["image"]}),
            "resize": (3, {"inputs": ["image"]}),
        },
    ),
    "text": (
        Text(path="texts.jsonl", label="label", length=6),
        {
            "text": ("title", {}),
            "label": ("third", {}),
            "label_is_folder": (True, {"path": "files", "label": None}),
            "owner": ("owner", {}),
            "owner_is_file": (True, {"path": "files", "label": None}),
            "tokens": ("tokenizer.json", {}),
            "vocabulary": (5, {}),
            "test_path": ("some.jsonl", {}),
        },
    ),
    "text of a language model": (
        Text(path="files", tokens="characters"),
        {
            "text": ("title", {"path": "texts.jsonl"}),
            "label": ("label", {"path": "texts.jsonl"}),
            "owner": ("owner", {"path": "texts.jsonl"}),
            "tokens": ("words", {}),
            "test_path": ("files/k0", {"path": "files/k1"}),
        },
    ),
    "npz": (
        NPZ(path="arrays.npz"),
        {"x": ("holes", {}), "y": ("third", {}), "owner": ("third", {}), "missing": ("fill", {"x": "holes"})},
    ),
    "npz of tokens": (
        NPZ(path="tokens.npz", tokens=True),
        {"x": ("other", {}), "y": ("third", {}), "owner": ("third", {})},
    ),
    "image_folder": (ImageFolder(path="images"), {"animated": ("first", {"path": "moving"})}),
}
"""Data sets that are read from files, and other values of their options."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("files")
    datafiles.write_all(place)
    return place


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("check", [*EVERY, *CHECKS], ids=lambda check: check.__name__)
def test_a_data_set_that_is_read_from_files(kind, check, folder):
    check(Loading(FILES[kind][0], folder))


@pytest.mark.parametrize(
    ("kind", "option"),
    [(kind, field.name) for kind, (made, _) in FILES.items() for field in dataclasses.fields(made)],
)
def test_its_options_move_something(kind, option, folder):
    plugin, others = FILES[kind]
    if kind == "npz of tokens" and option in ("standardize", "missing"):
        an_option_that_is_refused(Loading(plugin, folder), option)
    else:
        every_option_moves_something(Loading(plugin, folder), option, others.get(option))


ELSEWHERE = {"torchvision"}
"""Needs a package that is not there, in whose place one stands in `test_torchvision.py`."""


@pytest.mark.parametrize("group", ["selectors", "aggregators", "transforms", "datasets"])
def test_no_built_in_is_left_out(group):
    tested = [made.specimen.plugin for name, made in globals().items() if name.startswith("Test")]
    tested += [plugin for plugin, _ in FILES.values()]
    known = {table_of(group, plugin)["kind"] for plugin in tested if group_of(plugin) == group}
    assert known | ELSEWHERE == {*plugins.ours(group)} | ELSEWHERE
