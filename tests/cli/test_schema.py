"""The JSON Schema of experiment files: what the loader takes it takes, what is misspelt it refuses."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import PARTS, PATHS, ROWS
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

import fedsim
from fedsim.cli.main import app
from fedsim.cli.reference import summary
from fedsim.cli.schema import document
from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.testing.subject import Subject

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
COMMITTED = EXPERIMENTS / "fedsim.schema.json"
FILES = sorted(path for path in EXPERIMENTS.rglob("*.toml") if path.name != "pyproject.toml")
RENEW = "FEDSIM_RENEW"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(COMMITTED.read_text(encoding="utf-8")))


def test_the_committed_schema_is_that_of_the_code() -> None:
    wanted = json.dumps(document(built_in=True), indent=1) + "\n"
    text = COMMITTED.read_text(encoding="utf-8")
    if os.environ.get(RENEW):
        COMMITTED.write_text(wanted, encoding="utf-8")
    assert text == wanted, (
        f"options have changed: run {RENEW}=1 pytest tests/cli/test_schema.py, read the change, commit it"
    )
    Draft202012Validator.check_schema(json.loads(text))


def test_the_command_prints_it() -> None:
    """Here, where nothing else is installed."""
    result = CliRunner().invoke(app, ["schema"])
    assert result.exit_code == 0
    assert result.stdout == COMMITTED.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiments_are_checked_by_it(path: Path, validator: Draft202012Validator) -> None:
    """Their first line leads there; what they say is allowed, and so is what every option comes to."""
    text = path.read_text(encoding="utf-8")
    directive, _, place = text.partition("\n")[0].partition(" ")
    assert directive == "#:schema"
    assert (path.parent / place).resolve() == COMMITTED
    assert [error.message for error in validator.iter_errors(tomllib.loads(text))] == []
    assert [error.message for error in validator.iter_errors(fedsim.load(path).resolved())] == []


@pytest.mark.parametrize("row", ROWS)
def test_the_contract_is_allowed_by_it(row: str, validator: Draft202012Validator) -> None:
    """Every row's tables, and what of them has another value of an option."""
    own = Subject(ROWS[row])
    assert [error.message for error in validator.iter_errors(dict(own.tables))] == []
    for part, rows in PARTS.items():
        table = PATHS[part][0]
        for option, (value, _) in rows.get(row, {}).items():
            changed = {table: own.altered(PATHS[part], {option: value}).tables[table]}
            assert [error.message for error in validator.iter_errors(changed)] == []


ATTACK = {"kind": "pgd", "epsilon": 0.1}
SGD = {"kind": "sgd", "epochs": 1}


@pytest.mark.parametrize(
    "tables",
    [
        {"rounds": 3, "duration": 1.5, "seed": -1},
        {"strategy": "fedavg", "aggregation": "median"},
        {"strategy": {"kind": "./mine.py:Mine", "whatever": [1]}, "client": "module.sub:Class"},
        {"strategy": "flwr:FedAdam", "selection": "./mine.py:Mine"},
        {"problem": {"model": {"kind": "mlp", "hidden": [3]}}},
        {"problem": {"model": "mine:Net", "dataset": {"kind": "mine:Data", "path": "x"}}},
        {"client": {**SGD, "schedule": "constant", "batch_size": "full"}},
        {"client": {**SGD, "schedule": {"kind": "cosine", "rounds": 9}, "lr": 1}},
        {"client": {**SGD, "adversarial": {"kind": "standard", "attack": ATTACK}}},
        {"client": {**SGD, "curriculum": {"pacing": {"kind": "step", "a": 0.5}, "expert": {"epochs": 2}}}},
        {"evaluation": {"on": "train", "attacks": "fgsm:Mine"}},
        {"evaluation": {"on": ["train", "test"], "attacks": [ATTACK, {"kind": "fgsm", "epsilon": 1.0}]}},
        {"evaluation": {"attacks": ATTACK, "clients": False}},
        {"evaluation": {"metrics": ["f1_macro", "auroc", "top_7_accuracy", {"kind": "ece", "bins": 5}, "./mine.py:M"]}},
        {"transforms": [{"kind": "clip", "max_norm": 1.0}], "order_transforms": ["mine:Half"]},
        {"faults": {"late": 0.5, "crash": {"rate": 0.1, "clients": [0, 3]}}},
        {"devices": {"compute": "fixed", "bandwidth": {"up": 1.0, "down": 2.0}}},
        {"resolved": {"executor": "stacked"}, "versions": {"fedsim": "0.1.0"}},
    ],
    ids=str,
)
def test_what_may_stand_in_a_file(tables: dict[str, Any], validator: Draft202012Validator) -> None:
    assert [error.message for error in validator.iter_errors(tables)] == []


@pytest.mark.parametrize(
    "tables",
    [
        {"round": 3},
        {"rounds": 0},
        {"rounds": 2.5},
        {"rounds": True},
        {"name": "a/b"},
        {"stratgy": "fedavg"},
        {"strategy": "fedavgg"},
        {"strategy": {"kind": "fedavgg"}},
        {"strategy": {"server_lr": 1.0}},
        {"strategy": {"kind": "fedavg", "server_rate": 1.0}},
        {"strategy": {"kind": "fedavg", "server_lr": 0.0}},
        {"strategy": {"kind": "fedavg", "server_lr": "fast"}},
        {"strategy": {"kind": "fedavg", "server_optimizer": {"kind": "adam", "beta3": 0.5}}},
        {"strategy": {"kind": "fedavg", "server_optimizer": "lyon"}},
        {"aggregation": "krum"},
        {"aggregation": {"kind": "krum"}},
        {"client": {**SGD, "schedule": "cosine"}},
        {"client": {**SGD, "schedule": "mine:Schedule"}},
        {"client": {**SGD, "schedule": {"kind": "cosine", "rounds": 9, "and": 0.1}}},
        {"client": {**SGD, "batch_size": "all"}},
        {"client": {**SGD, "adversarial": {"kind": "standard", "attack": {**ATTACK, "epsilonn": 1.0}}}},
        {"client": {**SGD, "curriculum": {"expert": {"epochs": 2.5}}}},
        {"problem": {"model": {"hidden": [3]}}},
        {"problem": {"model": {"kind": "mlp", "hidden": 3}}},
        {"evaluation": {"on": "all"}},
        {"evaluation": {"attacks": [{"kind": "pgd"}]}},
        {"evaluation": {"metrics": ["f1_marco"]}},
        {"evaluation": {"metrics": [{"kind": "ece", "bin": 5}]}},
        {"transforms": {"kind": "clip", "max_norm": 1.0}},
        {"transforms": [{"kind": "clip", "max_norm": -1.0}]},
        {"faults": {"late": 1.5}},
        {"faults": {"later": 0.5}},
        {"devices": {"bandwidth": {"up": 1.0}}},
        {"engine": {"executor": "stack"}},
        {"engine": "cpu"},
    ],
    ids=str,
)
def test_what_is_misspelt_is_refused_by_both(tables: dict[str, Any], validator: Draft202012Validator) -> None:
    assert [error.message for error in validator.iter_errors(tables)] != []
    with pytest.raises(InputError):
        fedsim.experiment(**tables)


@options
class Theirs:
    """A data set of somebody else."""

    rows: int
    """How many."""
    scale: float | np.ndarray = 1.0

    def load(self, folder: Any) -> Any: ...


def test_plug_ins_of_other_packages_are_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not in that of our own; an array can be given by Python alone, and a text may be missing."""

    def installed(group: str) -> dict[str, Any]:
        return dict.fromkeys([*found(group), *(["theirs"] if group == "datasets" else [])])

    def of(group: str, kind: str, option: str) -> type[Any]:
        return Theirs if kind == "theirs" else loaded(group, kind, option)

    found, loaded = plugins.names, plugins.option_class
    monkeypatch.setattr("fedsim.cli.places.names", installed)
    monkeypatch.setattr("fedsim.cli.places.option_class", of)
    made = document()
    assert made["$defs"]["problem.dataset:theirs"] == {
        "type": "object",
        "description": summary(Theirs),
        "properties": {
            "kind": {"const": "theirs"},
            "rows": {"type": "integer", "description": "How many."},
            "scale": {"anyOf": [{"type": "number"}, {}], "default": 1.0},
        },
        "required": ["kind", "rows"],
        "additionalProperties": False,
    }
    taken = {"problem": {"dataset": {"kind": "theirs", "rows": 3}}}
    assert [error.message for error in Draft202012Validator(made).iter_errors(taken)] == []
    assert "problem.dataset:theirs" not in document(built_in=True)["$defs"]
