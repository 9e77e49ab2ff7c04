"""Schedules that are tables, or nearly: their factors, and files that have them."""

from __future__ import annotations

import math

import pytest

import fedsim
from clients.sgd import Sgd
from fedsim.core.errors import InputError
from fedsim.core.schedules import Cosine, CosinePower, Table


def test_a_table_has_one_factor_a_round_and_its_last_from_there_on():
    table = Table(factors=(1.0, 2.5, 0.0))
    assert [table.factor(r) for r in (0, 1, 2, 3, 99)] == [1.0, 2.5, 0.0, 0.0, 0.0]


def test_cosine_power_is_its_formula():
    # Half-way of a cosine from 1 to 0 is h = 1/2, where (10^h - 1) / 9 = 0.240253; from 1 to 0.2: 0.2 + 0.8 of that.
    assert CosinePower(rounds=4).factor(2) == pytest.approx(0.2402530734, abs=1e-9)
    falling = CosinePower(rounds=4, end=0.2)
    assert [falling.factor(r) for r in (0, 2, 4, 9)] == pytest.approx([1.0, 0.2 + 0.8 * 0.2402530734, 0.2, 0.2])
    # A quarter of the way h = (1 + cos(pi / 4)) / 2.
    assert CosinePower(rounds=4, power=3.0).factor(1) == pytest.approx((3 ** ((1 + math.sqrt(0.5)) / 2) - 1) / 2)


def test_cosine_power_becomes_a_cosine_as_its_power_falls_to_one():
    near, cosine = CosinePower(rounds=7, power=1.0 + 1e-9), Cosine(rounds=7)
    assert [near.factor(r) for r in range(8)] == pytest.approx([cosine.factor(r) for r in range(8)], abs=1e-8)


def test_a_file_of_factors_is_found_beside_the_experiment_and_what_is_resolved_has_the_factors(tmp_path):
    (tmp_path / "refined.toml").write_text("# of another run\nfactors = [1.0, 0.25, 0]\n")
    path = tmp_path / "experiment.toml"
    path.write_text('[client]\nkind = "sgd"\nepochs = 1\nschedule = { kind = "table", factors = "refined.toml" }\n')
    loaded = fedsim.load(path)
    assert loaded.client.schedule.factors == (1.0, 0.25, 0.0)
    assert loaded.resolved()["client"]["schedule"] == {"kind": "table", "factors": [1.0, 0.25, 0.0]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("factor = [1.0]", r"client\.schedule\.factors = .* write factors"),
        ("factors = [1.0, -0.5]", r"client.schedule.factors.1 = -0.5"),
        ("factors = []", "client.schedule.factors"),
        ("factors = [nan]", "client.schedule.factors.0"),
        ("factors = [1.0", r"client\.schedule\.factors = .* is no TOML"),
        (None, r"client\.schedule\.factors = .* cannot be read"),
    ],
)
def test_files_without_factors_are_refused(tmp_path, text, said):
    path = tmp_path / "factors.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=f"^{said}"):
        fedsim.experiment(client={"kind": "sgd", "epochs": 1, "schedule": {"kind": "table", "factors": str(path)}})


def test_epochs_may_not_grow_by_a_table():
    assert Sgd(epochs=3, epochs_schedule=Table(factors=(1.0, 0.4))).cost  # it may fall
    with pytest.raises(InputError, match=r"epochs_schedule.factors = 1.5"):
        Sgd(epochs=3, epochs_schedule=Table(factors=(1.0, 1.5)))
