"""What comes of the published data sets' short files, by measures of their own. Nothing is claimed of the numbers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.studies import cell, run_all
from fedsim.running.history import History
from fedsim.running.stored import CLIENTS, METRICS
from fedsim.running.sweep import Point, expand

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Study:
    """A file of this folder.

    measures: columns that are told at the end of a run. ways: what else is run, by name, and how the file is changed
    for it. seeds: 0 to below. clients: of each client these columns of `clients.csv` are told, too.
    """

    file: str
    measures: tuple[str, ...]
    ways: tuple[tuple[str, tuple[str, ...]], ...] = (("", ()),)
    seeds: int = 3
    clients: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What is measured."""
        over = f"mean over seeds 0 to {self.seeds - 1}" if self.seeds > 1 else "seed 0"
        return f"data_sets/{self.file}.toml: measures at its end, {over}"


PERSONAL = ("personal_accuracy_mean", "client_accuracy_mean", "test_accuracy", "test_f1_macro")
STATISTICS = tuple(
    (way, (f"problem.normalisation.statistics={way}",)) for way in ("averaged", "pooled", "local_statistics", "local")
)
STUDIES = (
    Study("heart_disease", ("test_accuracy", "test_auroc", "test_ece"), clients=("accuracy", "auroc", "ece")),
    Study("adult", ("test_accuracy", "test_auroc", "test_f1_macro", "test_ece", "client_auroc_worst")),
    Study("kddcup99", ("test_accuracy", "test_f1_macro", "test_balanced_accuracy"), seeds=2),
    Study("wisdm", ("test_accuracy", "test_f1_macro", "test_balanced_accuracy", "client_f1_macro_worst")),
    Study("fsdd", ("test_accuracy", "test_f1_macro", "client_accuracy_worst")),
    Study("mnist", ("test_accuracy", "test_f1_macro", "test_ece"), seeds=1),
    Study("fashion_mnist", ("test_accuracy", "test_f1_macro", "test_ece"), seeds=1),
    Study("cifar10", ("test_accuracy", "test_top_3_accuracy", "test_ece"), seeds=1),
    Study("femnist", PERSONAL, STATISTICS, seeds=2),
    Study("shakespeare", ("test_accuracy", "test_perplexity", "client_perplexity_worst"), seeds=1),
)


def measure(study: Study, out: Path, data_dir: Path | None) -> str:
    """Run what is not finished in `out`, one run folder a seed, and say what came of it. FedsimError: a run failed."""
    told = []
    for way, changes in study.ways:
        place = out / study.file / way
        points = expand(
            [FOLDER / f"{study.file}.toml"], out=place, seeds=range(study.seeds), overrides=changes, data_dir=data_dir
        )
        run_all(points)
        said = [*_measures(study.measures, points), *_clients(study.clients, points)]
        told.append(f"{way}: {', '.join(said)}" if way else ", ".join(said))
    return "; ".join(told)


def _measures(names: Sequence[str], points: Sequence[Point]) -> list[str]:
    """Of each measure that the runs have its name and value."""
    histories = [History(point.folder / METRICS) for point in points]
    held = [name for name in names if name in histories[0].columns]
    return [f"{name} {cell(np.array([float(one.last(name)) for one in histories]), 3)}" for name in held]


def _clients(names: Sequence[str], points: Sequence[Point]) -> list[str]:
    """Of each client its name and the means over the seeds of what was measured of it."""
    if not names:
        return []
    tables = [list(csv.DictReader((point.folder / CLIENTS).read_text().splitlines())) for point in points]
    return [
        f"{rows[0]['name']} " + "/".join(f"{np.mean([float(row[name]) for row in rows]):.3f}" for name in names)
        for rows in zip(*tables, strict=True)
    ]
