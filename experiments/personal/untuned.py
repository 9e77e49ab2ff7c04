"""The digits at one rate for all, as a prototype of other code and other draws had them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from experiments.parts import Claim, Part, carry_out
from experiments.personal import HERE
from experiments.personal.methods import METHODS
from experiments.personal.study import Results, Row, Setting, columns_of, draw, read, runs, table
from fedsim.running.sweep import Outcome

SETTING = Setting("digits", ("0.5",), "full")
SEEDS = range(12)
CHOICES = {
    "fedavg": {"tune": "0.5"},
    "local": {},
    "ditto": {"lam": "0.1"},
    "fedper": {},
    "lg_fedavg": {},
    "fedproto": {"lam": "1.0"},
}
"""Knobs as the prototype had them."""
EXPECTED = {
    "fedavg": 0.934,
    "fedavg+": 0.961,
    "local": 0.957,
    "ditto": 0.968,
    "fedper": 0.958,
    "lg_fedavg": 0.958,
    "fedproto": 0.966,
}
"""What it came to."""
BELOW = 0.015
"""How far below that a mean may be."""


def measure(out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:
    """Run what is not finished in `out`, and read it all. FedsimError: a run failed."""
    every = {name: {"lr": SETTING.rates[0], **knobs} for name, knobs in CHOICES.items()}
    found = {name: runs(name, choice, SETTING, SEEDS, out, None) for name, choice in every.items()}
    carry_out(found.values(), workers, on_done)
    return {
        name + end: Row(METHODS[name].label + (" + 5 steps" if end else ""), every[name], read(points, whose))
        for name, points in found.items()
        for end, whose in columns_of(METHODS[name]).items()
    }


def as_expected(results: Results) -> tuple[str, bool]:
    """Whether every row comes to what the prototype did, or to more."""
    means = {name: float(results[name].final.mean()) for name in EXPECTED}
    said = ", ".join(f"{results[name].label} {mean:.3f} ({EXPECTED[name]:.3f})" for name, mean in means.items())
    return said, all(mean >= EXPECTED[name] - BELOW for name, mean in means.items())


def in_each_seed(results: Results) -> tuple[str, bool]:
    """Whether Ditto and fine-tuning are above FedAvg in each of the seeds."""
    base = results["fedavg"].final
    above = {name: int((results[name].final > base).sum()) for name in ("ditto", "fedavg+")}
    said = ", ".join(f"{results[name].label} in {count} of {len(base)}" for name, count in above.items())
    return said, all(count == len(base) for count in above.values())


PART = Part(
    HERE,
    "untuned",
    measure,
    table,
    draw,
    (
        Claim(
            "prototype",
            f"digits, rate 0.5 for all, seeds 0 to 11: every mean is at most {BELOW} below a prototype's (in brackets)",
            as_expected,
        ),
        Claim("each_seed", "and Ditto and FedAvg with fine-tuning are above FedAvg in each seed", in_each_seed),
    ),
)
