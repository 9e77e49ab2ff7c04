"""What comes of a published data set's file is told by way, measure and client."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

import fedsim
from experiments import check
from experiments.data_sets import study
from fedsim.running.sweep import Point

pytestmark = pytest.mark.usefixtures("unpainted")


def test_each_published_file_is_measured() -> None:
    files = {file.stem for file in study.FOLDER.glob("*.toml")}
    assert {one.file for one in study.STUDIES} == files
    named = {claim.name for claim in check.CLAIMS if claim.needs_data}
    assert {f"data_{file}" for file in files} <= named


def test_measures_are_told_by_way_and_by_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ.get("FEDSIM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FEDSIM_DATA names no folder of data files")

    def here(points: Sequence[Point]) -> None:
        for point in points:
            fedsim.run(point.experiment, out=point.folder)

    monkeypatch.setattr(study, "run_all", here)  # which has a process a run
    ways = (("once", ("rounds=1",)), ("twice", ("rounds=2",)))
    short = study.Study("heart_disease", ("test_auroc", "of_nobody"), ways, seeds=1, clients=("accuracy", "auroc"))
    told = study.measure(short, tmp_path, Path(folder)).split("; ")
    sites = [rf"processed\.{place} 0\.\d{{3}}/0\.\d{{3}}" for place in ("cleveland", "hungarian", "switzerland", "va")]
    for way, said in zip(("once", "twice"), told, strict=True):
        assert re.fullmatch(", ".join([rf"{way}: test_auroc 0\.\d{{3}}", *sites]), said), said
    assert told[0].split(": ")[1] != told[1].split(": ")[1]
    assert short.text.endswith("seed 0")
