"""Where methods are compared at rates of their own, and what is claimed there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from experiments.parts import Claim, Part
from experiments.personal import HERE
from experiments.personal.study import BASES, LEVEL, Results, Setting, against_all, ahead, draw, measure, table

RATES = ("0.2", "0.5", "1.0", "2.0")
DIGITS = Setting("digits", RATES, "full")
FASHION = Setting("fashion", ("0.01", "0.03", "0.1", "0.3"), "32", range(100, 101))
FEMNIST = Setting("femnist", ("0.003", "0.01", "0.03", "0.1"), "20", range(100, 101))
HEART = Setting("heart", ("0.1", "0.3", "1.0", "3.0"), "32")


def better(*pairs: tuple[str, str]) -> Callable[[Results], tuple[str, bool]]:
    """Whether the first of each pair is ahead of the second, by a paired t."""

    def judge(results: Results) -> tuple[str, bool]:
        found = [ahead(results, one, other) for one, other in pairs]
        return "; ".join(said for said, _ in found), all(held for _, held in found)

    return judge


def best(results: Results) -> tuple[str, None]:
    """The rows, the best first; nothing is demanded."""
    order = sorted(results.values(), key=lambda row: -row.final.mean())
    return ", ".join(f"{row.label} {row.final.mean():.3f}" for row in order), None


def told_apart(results: Results) -> tuple[str, None]:
    """Which rows are ahead of a baseline and which behind, as far as the seeds tell; nothing is demanded."""
    said = []
    for base, label in BASES.items():
        found = against_all(results, base)
        told = {name: apart for name, (apart, p) in found.items() if p < LEVEL}
        names = [
            ", ".join(f"{results[name].label} {told[name]:+.3f}" for name in told if (told[name] > 0) is above)
            or "none"
            for above in (True, False)
        ]
        said.append(f"ahead of {label}: {names[0]}; behind it: {names[1]}")
    return "; ".join(said), None


def part_of(setting: Setting, name: str, told: str, *claims: Claim[Results]) -> Part[Results]:
    """A setting as a part, with what all of them are told of."""
    order = Claim(
        "order", f"{told}, rates and knobs of other seeds: accuracy on the clients' own tests, best first", best
    )
    apart = Claim("apart", "and those that a paired t tells from a baseline, Holm over all methods", told_apart)
    told_of = [replace(claim, name=f"{name}_{claim.name}") for claim in (order, apart, *claims)]
    return Part(HERE, name, partial(measure, setting), table, draw, told_of, needs_data=setting is not DIGITS)


TUNED_AHEAD = Claim(
    "tuning",
    "and FedAvg is better with a few steps of fine-tuning, p < 0.05 of a paired t",
    better(("fedavg+", "fedavg")),
)
PARTS = {
    part.name: part
    for part in (
        part_of(DIGITS, "digits", "digits, Dirichlet(0.1), 20 clients", TUNED_AHEAD),
        part_of(FASHION, "fashion", "Fashion-MNIST, two classes a client, 100 clients", TUNED_AHEAD),
        part_of(FEMNIST, "femnist", "FEMNIST, 109 writers", TUNED_AHEAD),
        part_of(HEART, "heart", "heart disease, four hospitals", TUNED_AHEAD),
    )
}
