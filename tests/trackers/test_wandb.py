"""The tracker for W&B by W&B itself, where it is installed: what it keeps of runs offline, from its own records."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import fedsim
from fedsim.core.errors import InputError
from fedsim.running.seeds import run_seeds
from fedsim.running.stored import StoredRun
from fedsim.testing import conformance, small_experiment, small_problem

if importlib.util.find_spec("wandb") is None:
    pytest.skip("wandb is not installed", allow_module_level=True)

os.environ["WANDB_ERROR_REPORTING"] = "false"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own libraries
    import wandb
    from wandb.proto import wandb_internal_pb2

from fedsim.trackers import WandB

FOLDER = TemporaryDirectory()
SETTINGS = {"silent": True, "x_disable_stats": True, "disable_git": True}
OFFLINE = WandB(mode="offline", folder=FOLDER.name, project="tests", settings=SETTINGS, patience=100.0, tags=["a"])
BLOCK = 2**15
"""Bytes of a block of W&B's file: a record begins with a checksum, its length and whether it is whole or a part."""
HEAD = struct.Struct("<IHB")
PATIENCE = 400
"""How many times it is looked whether W&B has written all, 0.05 s apart."""
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def places() -> Iterator[None]:
    """All that W&B writes is in the folder of these tests, and nobody is logged in."""
    with FOLDER, pytest.MonkeyPatch.context() as patched:
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "NETRC", "HOME"):
            patched.setenv(name, f"{FOLDER.name}/{name}")
        patched.delenv("WANDB_API_KEY", raising=False)
        yield
        wandb.teardown()


def records(path: Path) -> Iterator[Any]:
    """What a .wandb file holds, which is written as LevelDB's log is."""
    content, place, record = path.read_bytes(), 7, b""
    assert content.startswith(b":W&B") or not content
    while place + HEAD.size <= len(content):
        _, length, kind = HEAD.unpack_from(content, place)
        if kind == 0 or BLOCK - place % BLOCK < HEAD.size:  # the rest of a block
            place += BLOCK - place % BLOCK
            continue
        place += HEAD.size + length
        if place > len(content):  # it is being written
            return
        record += content[place - length : place]
        if kind in (1, 4):
            read = wandb_internal_pb2.Record()
            read.ParseFromString(record)
            record = b""
            yield read


def told(folder: Path) -> list[Any]:
    """All records of the run in a folder, those of its first part first.

    A process of W&B's writes them, and may still be at it when a run has ended: the last record of each file is waited
    for.
    """
    key, parts = json.loads((folder / "tracking.json").read_text())["key"], list[list[Any]]()
    for _ in range(PATIENCE):
        files = sorted(Path(FOLDER.name).glob(f"wandb/offline-run-*/run-{key}.wandb"))
        parts = [list(records(file)) for file in files]
        ended = [any(record.WhichOneof("record_type") == "exit" for record in part) for part in parts]
        if ended and all(ended):
            break
        time.sleep(0.05)
    return [record for part in parts for record in part]


def rows(folder: Path) -> list[dict[str, float]]:
    """The rows that W&B has of a run: a step is there once, and what is told of it again is what was told."""
    read: dict[int, dict[str, float]] = {}
    for record in told(folder):
        if record.WhichOneof("record_type") == "history":
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            row = {name: float(value) for name, value in values.items() if not name.startswith("_")}
            before = read.setdefault(record.history.step.num, row)
            assert {**before, "wall": 0} == {**row, "wall": 0}
    assert list(read) == list(range(len(read)))
    return list(read.values())


TestWandB = conformance(OFFLINE, read=rows)


def only(found: list[Any], kind: str) -> Any:
    """What the first record of a kind says."""
    return next(getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind)


def test_a_run_has_its_options_summary_files_and_place(tmp_path):
    experiment = small_experiment(2, track=[OFFLINE])
    group = tmp_path / "tries"
    fedsim.run(experiment, problem=small_problem(), out=group / "a" / "seed-0", group=group)
    found = told(group / "a" / "seed-0")
    made = only(found, "run")
    assert (made.display_name, made.run_group, made.job_type) == ("a/seed-0", "tries", "a")
    assert (made.project, list(made.tags)) == ("tests", ["a"])
    config = {item.key: json.loads(item.value_json) for item in made.config.update}
    assert config["client.lr"] == StoredRun(group / "a" / "seed-0").config()["client"]["lr"]
    assert not [name for name in config if name.startswith("track")]
    summary = {
        item.key: json.loads(item.value_json)
        for record in found
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
    assert summary["status"] == "finished"
    files = {entry.path for entry in only(found, "artifact").manifest.contents}
    assert {"config.toml", "metrics.jsonl", "summary.json", "curves.png"} <= files
    assert "model.safetensors" not in files
    assert only(found, "exit").exit_code == 0


def test_the_rest_of_an_interrupted_run_has_a_file_of_its_own_and_nothing_that_was_told(tmp_path):
    def interrupt(seen: fedsim.Round) -> None:
        if seen.row["round"] == 1:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    fedsim.run(small_experiment(3, track=[OFFLINE]), problem=small_problem(), out=out, callbacks=[interrupt])
    fedsim.resume(out, problem=small_problem())
    found = told(out)
    assert [record.history.step.num for record in found if record.WhichOneof("record_type") == "history"] == [0, 1, 2]
    assert [record.exit.exit_code for record in found if record.WhichOneof("record_type") == "exit"] == [1, 0]


def test_seeds_as_one_stack_are_runs_of_their_own(tmp_path):
    functions = {"client": {"kind": "fedzo"}, "problem": {"kind": "benchmark"}, "evaluation": {"every": 1}}
    run_seeds(small_experiment(2, track=[OFFLINE], **functions), [0, 1], out=tmp_path / "both")
    for seed in (0, 1):
        folder = tmp_path / "both" / f"seed-{seed}"
        assert [row["value"] for row in rows(folder)] == [row["value"] for row in StoredRun(folder).rows()]
        assert only(told(folder), "run").run_group == "both"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"settings": {"no_such": 1}}, r"settings\.no_such = 1: is no setting of this version of wandb"),
        ({"settings": {"silent": "perhaps"}}, r"settings\.silent = perhaps: is no setting"),
        ({"mode": "online"}, "mode = online: W&B has no key here; run wandb login, set WANDB_API_KEY"),
        ({}, "mode = online: W&B has no key here"),
    ],
)
def test_what_wandb_does_not_know_is_refused_early_and_so_is_sending_without_a_key(options, line):
    with pytest.raises(InputError, match=f"^{line}"):
        WandB(**options).check(True)
