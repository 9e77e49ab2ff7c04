"""The comparison of rules: what is measured of runs, what is made of them, and that they run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fedsim
from experiments.optimizers import batch_sizes, distances, merging, rules, servers
from experiments.parts import Part, program
from experiments.studies import Numbers
from fedsim.core import plugins
from fedsim.running.sweep import Point

GRID = (0.01, 0.1, 1.0, 10.0)


def measured(choosing: list[float], told: list[float], grid: tuple[float, ...] = GRID) -> rules.Measured:
    """A rule with these mean accuracies, alike in all seeds."""
    return rules.Measured(grid, np.array(choosing)[:, None] + np.zeros(3), np.array(told)[:, None] + np.zeros(5))


ONES: Numbers = np.ones((2, 3))


def test_the_rate_is_that_of_other_seeds_and_the_range_is_around_it():
    one = measured([0.5, 0.9, 0.91, 0.2], [0.5, 0.93, 0.92, 0.91])
    assert (one.chosen, one.final.tolist()) == (2, [0.92] * 5)
    assert one.near == (0.1, 10.0)
    assert one.breadth == pytest.approx(2.0)
    assert measured([0.9, 0.1, 0.1, 0.1], [0.9, 0.1, 0.9, 0.9]).near == (0.01, 0.01)  # not what lies beyond a gap


def test_what_is_claimed_follows_from_the_numbers():
    level = {name: measured([0.9] * 4, [0.9] * 4, rules.RULES[name].grid[:4]) for name in rules.RULES}
    better = level | {"muon": measured([0.95] * 4, [0.95] * 4)}
    assert rules.muon_ahead(better)[1]
    assert not rules.muon_ahead(better | {"egn": measured([0.96] * 4, [0.96] * 4)})[1]
    worse = level | {"sgd": measured([0.91] * 4, [0.91] * 4)}
    assert rules.adaptive_behind(worse)[1]
    assert not rules.adaptive_behind(worse | {"lion": measured([0.92] * 4, [0.92] * 4)})[1]
    named = {"sania": (0.1, 1.0), "dog": (0.01, 0.1), "a_dog": (0.01, 0.1)}
    found = {name: rules.Measured(grid, ONES, np.full((2, 5), 0.9)) for name, grid in named.items()}
    assert rules.no_rate(level | found)[1]
    low = rules.Measured((0.1, 1.0), ONES, np.array([[0.95], [0.85]]) + np.zeros(5))
    assert not rules.no_rate(level | found | {"sania": low})[1]


def test_rates_are_half_decades():
    assert rules.decades(3e-4, 4) == (0.0003, 0.001, 0.003, 0.01)
    assert rules.decades(1e-2, 3) == (0.01, 0.03, 0.1)


def test_all_rules_are_compared():
    """By their own names, but for forms of the same one."""
    kinds = {re.search(r"\w+(?='|$)", rule.optimizer.partition(",")[0]).group() for rule in rules.RULES.values()}
    assert set(plugins.ours("optimizers")) - {"sam"} <= kinds  # which is around another rule


@pytest.mark.usefixtures("forked_workers")
def test_a_part_runs_and_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(rules, "CHOOSING", range(100, 101))
    monkeypatch.setattr(rules, "TOLD", range(1))
    few = Part(
        tmp_path,
        "rules",
        lambda out, **given: rules.measure(out, rules=("sgd",), rounds=1, **given),
        rules.table,
        rules.draw,
        rules.PART.claims[-1:],
    )
    picture = tmp_path / "rules.png"
    words = ["rules", "--out", str(tmp_path / "runs"), "--workers", "1", "--picture", str(picture)]
    for given, code in ((words, 0), (["rule"], 2)):
        monkeypatch.setattr(sys, "argv", ["optimizers", *given])
        with pytest.raises(SystemExit) as ended:
            program({"rules": few}, tmp_path)
        told = capsys.readouterr()
        assert ended.value.code == code, told
        assert ("measured: and decades of rates" in told.out) == (code == 0)
    assert picture.stat().st_size > 10_000


def test_what_is_claimed_of_distances_follows_from_the_numbers():
    """Means as the prototype's; then each claim's own refutation."""
    claims = {claim.name: claim.judge for claim in distances.PART.claims}
    starts, seeds = np.array(distances.STARTS), np.zeros(5)
    fresh = np.array([0.1, 0.2, 0.4, 0.9, 0.93, 0.94, 0.1, 0.1])[:, None] + seeds
    kept = np.array([0.9, 0.91, 0.92, 0.92, 0.92, 0.91, 0.1, 0.1])[:, None] + seeds
    likely = {"fresh": fresh, "kept": kept, "fresh_average": fresh + 0.01, "kept_average": kept + 0.01}
    assert {name for name, judge in claims.items() if judge(likely)[1]} == set(claims)
    assert distances.near(likely, "fresh") == [0.01, 0.1]
    refuted = {
        "published": {"kept": kept - 0.1 * (starts == 1e-6)[:, None]},
        "ours": {"fresh": fresh - 0.02 * (starts == 0.01)[:, None]},
        "collapse": {"fresh": fresh + 0.5 * (starts == 0.3)[:, None]},
        "broader": {"kept": kept - 0.1 * (starts < 0.01)[:, None]},
        "averages": {"kept_average": kept + 0.01 - 0.02 * (starts == 0.1)[:, None]},
    }
    for name, other in refuted.items():
        assert not claims[name](likely | other)[1], name


def test_distances_are_drawn_and_laid_out(tmp_path: Path):
    found = {scheme: np.full((len(distances.STARTS), 2), 0.5) for scheme in distances.SCHEMES}
    distances.draw(found, tmp_path / "distances.png")
    assert (tmp_path / "distances.png").stat().st_size > 10_000
    assert distances.table(found).row_count == len(distances.STARTS)


def test_distances_are_measured_of_the_rule_that_a_scheme_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distances, "STARTS", (0.1,))
    monkeypatch.setattr(distances, "SEEDS", range(1))
    monkeypatch.setattr(distances, "SCHEMES", {"kept_average": "the only one"})
    points: list[Point] = []
    monkeypatch.setattr("experiments.parts.run_all", lambda given, *rest, **more: points.extend(given))
    monkeypatch.setattr(
        "experiments.parts.open_run", lambda folder: SimpleNamespace(summary=lambda: {"status": "diverged"})
    )
    assert distances.measure(tmp_path)["kept_average"].tolist() == [[0.0]]
    rule = points[0].experiment.client.rule
    assert (rule.reps_rel, rule.distance, rule.average) == (0.1, "client", True)


def test_what_is_claimed_of_servers_follows_from_the_numbers(tmp_path: Path):
    """Means as the prototype's; then what refutes each."""
    claims = {claim.name: claim.judge for claim in servers.PART.claims}
    means = {"mean": (0.946, 0.860), "dog": (0.940, 0.908), "published": (0.081, 0.08)}
    found = {name: np.array(own)[:, None] + np.zeros(5) for name, own in means.items()}
    assert {name for name, judge in claims.items() if judge(found)[1]} == set(claims)
    for dog in ((0.93, 0.908), (0.94, 0.865)):
        assert not claims["server_dog"](found | {"dog": np.array(dog)[:, None] + np.zeros(5)})[1]
    assert not claims["server_published"](found | {"published": np.full((2, 5), 0.4)})[1]
    servers.draw(found, tmp_path / "servers.png")
    assert (tmp_path / "servers.png").stat().st_size > 10_000
    assert servers.table(found).row_count == 3


def test_what_is_claimed_of_merges_follows_from_the_numbers(tmp_path: Path):
    """A gain counts from a standard error of the difference by seed: here 0.01 each, but for one seed."""
    claims = {claim.name: claim.judge for claim in merging.PART.claims}
    level, ahead = np.full(5, 0.9), np.array([0.91, 0.91, 0.91, 0.91, 0.9])
    found = {name: merging.Measured("r", "0.1", ahead if "merged" in name else level) for name in merging.SCHEMES}
    assert {name for name, judge in claims.items() if judge(found)[1]} == set(claims)
    wild = merging.Measured("r", "0.1", np.array([0.95, 0.95, 0.86, 0.86, 0.885]))  # 0.001 ahead, error 0.02
    for name, scheme in (("merge", "merged"), ("merge_kept", "merged_kept")):
        assert not claims[name](found | {scheme: wild})[1]
    assert not claims["beside_sgd"](found | {"sgd": merging.Measured("r", "0.1", np.full(5, 0.92))})[1]
    merging.draw(found, tmp_path / "merging.png")
    assert (tmp_path / "merging.png").stat().st_size > 10_000
    assert merging.table(found).row_count == len(merging.SCHEMES)


@pytest.mark.parametrize("part", [merging, servers])
def test_merges_and_servers_are_measured_of_what_a_scheme_names(
    part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of two rules and two rates the second ones are best on the seeds that choose; what is told is of others."""
    done: list[Point] = []
    monkeypatch.setattr("experiments.parts.run_all", lambda given, *rest, **more: done.extend(given))

    def opened(folder: Path) -> SimpleNamespace:
        best = "1-0.3" in str(folder) or "dog/0.01" in str(folder)
        return SimpleNamespace(summary=lambda: {"status": "finished", "test_accuracy": 0.9 if best else 0.5})

    monkeypatch.setattr("experiments.parts.open_run", opened)
    if part is servers:
        found = servers.measure(tmp_path, rounds=1)
        assert found["dog"].tolist() == [[0.5] * 5, [0.9] * 5]
        strategies = {
            (point.experiment.strategy.server_optimizer["kind"], point.experiment.rounds) for point in done[10:]
        }
        assert strategies == {("dog", 1)}
        return
    monkeypatch.setattr(merging, "SCHEMES", {name: merging.SCHEMES[name] for name in ("plain", "merged_kept")})
    results = merging.measure(tmp_path, rounds=1)
    assert (results["plain"].rule, results["plain"].lr) == (merging.FRESH[1], "0.3")
    told = done[-5:]
    assert [point.experiment.seed for point in told] == [0, 1, 2, 3, 4]
    rule = told[0].experiment.client.rule
    assert (rule.h0, rule.precision, told[0].experiment.partition.alpha) == (100.0, "client", 0.1)
    assert type(told[0].experiment.strategy).__name__ == "FedIvon"
    assert results["merged_kept"].final.tolist() == [0.9] * 5


def of_batches(accuracy: float, wanted: float = 0.0) -> batch_sizes.Measured:
    """A scheme that is alike in all seeds and rounds."""
    sizes: Numbers = np.full((5, 60), wanted) if wanted else np.empty((5, 0))
    return batch_sizes.Measured(0.1, np.full(5, accuracy), sizes, sizes)


def test_what_is_claimed_of_batch_sizes_follows_from_the_numbers(tmp_path: Path):
    """Numbers that bear all out; then each claim's own refutation."""
    claims = {claim.name: claim.judge for claim in batch_sizes.PART.claims}
    fixed = {name: of_batches(0.9 - 0.1 * place) for place, name in enumerate(("fixed_4", "fixed_16", "fixed_64"))}

    def partition(within: float, total: float) -> dict[str, batch_sizes.Measured]:
        tests = {"within": of_batches(0.89, within), "total": of_batches(0.88, total)}
        return fixed | tests | {"within_half": of_batches(0.8, 16.0 * within)}

    likely = {"skewed": partition(4.0, 8.0), "alike": partition(20.0, 21.0)}
    assert {name for name, judge in claims.items() if judge(likely)[1]} == set(claims)
    refuted = {
        "small_wins": ("alike", {"fixed_64": of_batches(0.915)}),
        "keeps_up": ("alike", {"within": of_batches(0.87, 20.0)}),
        "skew": ("skewed", {"total": of_batches(0.88, 5.0)}),
        "grows": ("skewed", {"within": of_batches(0.89, 30.0)}),
        "jumps": ("skewed", {"within_half": of_batches(0.8, 60.0)}),
    }
    for name, (where, other) in refuted.items():
        assert not claims[name](likely | {where: likely[where] | other})[1], name
    batch_sizes.draw(likely, tmp_path / "batch_sizes.png")
    assert (tmp_path / "batch_sizes.png").stat().st_size > 10_000
    assert batch_sizes.table(likely).row_count == 2 * len(batch_sizes.SCHEMES)


def test_batch_sizes_are_measured_at_the_rate_of_other_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One scheme for two rounds: rates are tried on the seeds that choose, and the best of them is told of."""
    monkeypatch.setattr(batch_sizes, "CHOOSING", range(100, 101))
    monkeypatch.setattr(batch_sizes, "TOLD", range(1))
    monkeypatch.setattr(batch_sizes, "RATES", (1e-6, 0.3))
    monkeypatch.setattr(batch_sizes, "PARTITIONS", {"alike": batch_sizes.PARTITIONS["alike"]})
    monkeypatch.setattr(batch_sizes, "SCHEMES", {"within": batch_sizes.SCHEMES["within"]})

    def run_here(points: list[Point], *rest: object, **more: object) -> None:
        for point in points:
            fedsim.run(point.experiment, out=point.folder)

    monkeypatch.setattr("experiments.parts.run_all", run_here)
    one = batch_sizes.measure(tmp_path, rounds=2, workers=1)["alike"]["within"]
    assert (one.rate, one.accuracy.shape, one.wanted.shape) == (0.3, (1,), (1, 2))
    assert one.size[0, 0] == 4.0
