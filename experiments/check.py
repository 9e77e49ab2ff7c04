"""The claims that take long: measure them and write the table `experiments/results.md`.

python -m experiments.check [--only NAME]... [--data-dir FOLDER] [--runs FOLDER]. A claim is a row of `CLAIMS`. Exit
code 1 when one does not hold, 0 otherwise; without a data folder the claims that need one are skipped, and the table
says so. Rows of claims that were not chosen stay; every row says when and with what it was measured. The comparisons'
runs that are finished in --runs, by `python -m experiments.fzoos --out <runs>/fzoos` for one, are not done again.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

import fedsim
from experiments.certified.__main__ import PARTS as CERTIFIED
from experiments.coding.__main__ import PARTS as CODING
from experiments.compression import study as compression
from experiments.compression.__main__ import PARTS as COMPRESSION
from experiments.curriculum import study as curriculum
from experiments.data_sets import study as data_sets
from experiments.distillation import study as distillation
from experiments.evolution.__main__ import PARTS as EVOLUTION
from experiments.fairness import study as fairness
from experiments.fal import study as fal
from experiments.faults import study as faults
from experiments.fedfix import study as fedfix
from experiments.flower_strategies import agreement, sleeping
from experiments.fzoos import applications
from experiments.fzoos import study as fzoos
from experiments.gossip.__main__ import PARTS as GOSSIP
from experiments.one_byte import study as one_byte
from experiments.optimizers.__main__ import PARTS as OPTIMIZERS
from experiments.parts import AnyPart
from experiments.personal.__main__ import PARTS as PERSONAL
from experiments.privacy import study as privacy
from experiments.privacy.__main__ import PARTS as PRIVACY
from experiments.sensors import study as sensors
from experiments.studies import run_all
from experiments.tuning import study as tuning
from fedsim.core.machine import processor
from fedsim.running.runner import versions

HERE = Path(__file__).parent
RESULTS = HERE / "results.md"
STUDIES: Mapping[str, Mapping[str, AnyPart]] = {
    "certified": CERTIFIED,
    "coding": CODING,
    "compression": COMPRESSION,
    "evolution": EVOLUTION,
    "gossip": GOSSIP,
    "optimizers": OPTIMIZERS,
    "personal": PERSONAL,
    "privacy": PRIVACY,
}
"""Comparisons in parts."""


@dataclass(frozen=True)
class Outcome:
    """What came of a claim.

    measured: the numbers in words, or why it was skipped; held: None when it was, or is `observed`: told without
    anything being demanded of the numbers.
    """

    measured: str
    held: bool | None
    observed: bool = False

    @property
    def verdict(self) -> str:
        """One word for the table."""
        return {True: "yes", False: "NO", None: "measured" if self.observed else "skipped"}[self.held]


@dataclass(frozen=True)
class Place:
    """data_dir: the data folder, if there is one. runs: the folder of the comparisons' runs."""

    data_dir: Path | None
    runs: Path


@dataclass(frozen=True)
class Claim:
    """text: what is claimed. measure: find out. needs_data: it cannot be done without a data folder."""

    name: str
    text: str
    measure: Callable[[Place], Outcome]
    needs_data: bool = False

    def check(self, place: Place) -> Outcome:
        """Measure, or say why not."""
        if self.needs_data and place.data_dir is None:
            return Outcome("no data folder: pass --data-dir or set FEDSIM_DATA", None)
        return self.measure(place)


def digits_fedavg(place: Place) -> Outcome:
    """Mean of the final test accuracies over seeds 0 to 2."""
    base = fedsim.load(HERE / "digits_fedavg.toml", data_dir=place.data_dir)
    found = [fedsim.run(base.with_seed(seed), save=False).history.last("test_accuracy") for seed in range(3)]
    mean = sum(found) / len(found)
    return Outcome(f"{mean:.4f} ({', '.join(f'{value:.4f}' for value in found)})", mean >= 0.94)


def mnist_shards(place: Place) -> Outcome:
    """Mean of the last ten evaluations at the first round where it reaches the bar, or at the last round."""
    result = fedsim.run(fedsim.load(HERE / "mnist_shards.toml", data_dir=place.data_dir), save=False)
    accuracy = result.history.to_numpy("test_accuracy")
    means = [float(accuracy[end - 10 : end].mean()) for end in range(10, len(accuracy) + 1)]
    first = next((number for number, mean in enumerate(means, start=10) if mean >= 0.97), None)
    reached = "not reached" if first is None else f"reached at round {first}"
    return Outcome(f"{means[-1]:.4f} at round {len(accuracy)}, best {max(means):.4f}, {reached}", first is not None)


@cache
def fedfix_outcomes(place: Place) -> dict[str, Outcome]:
    """All claims about FedFix's comparison, by name, over seeds 0 to 4: they are about the same runs."""
    results = fedfix.measure(place.runs / "fedfix", data_dir=place.data_dir, seeds=range(5))
    return {claim.name: Outcome(*claim.judge(results)) for claim in fedfix.CLAIMS}


def of_fedfix(claim: fedfix.Claim) -> Claim:
    """One of them."""
    text = f"fedfix/: {claim.text}"
    return Claim(f"fedfix_{claim.name}", text, lambda place: fedfix_outcomes(place)[claim.name], needs_data=True)


@cache
def fzoos_results(place: Place) -> fzoos.Results:
    """The runs of FZooS's comparison on synthetic functions."""
    return fzoos.measure(place.runs / "fzoos")


def of_fzoos(claim: fzoos.Claim) -> Claim:
    """A claim about them."""
    return Claim(claim.name, f"fzoos/: {claim.text}", lambda place: Outcome(*claim.judge(fzoos_results(place))))


@cache
def one_byte_results(place: Place) -> one_byte.Results:
    """The runs of the comparison of accuracy against bytes, on the digits."""
    return one_byte.measure("digits", place.runs / "one_byte")


def of_one_byte(claim: one_byte.Claim) -> Claim:
    """A claim about them."""
    return Claim(claim.name, f"one_byte/: {claim.text}", lambda place: Outcome(*claim.judge(one_byte_results(place))))


@cache
def curriculum_results(part: str, place: Place) -> curriculum.Results:
    """The runs of a part of the curricula's comparison."""
    return curriculum.measure(part, place.runs / "curriculum", data_dir=place.data_dir)


def of_curriculum(claim: curriculum.Claim) -> Claim:
    """A claim about them."""

    def measure(place: Place) -> Outcome:
        return Outcome(*claim.judge(curriculum_results(claim.part, place)), observed=claim.holds is None)

    return Claim(claim.name, f"curriculum/: {claim.text}, mean over seeds 0 to 2", measure, needs_data=True)


@cache
def fal_losses(place: Place) -> fal.Losses:
    """The runs of adversarial learning in theory."""
    return fal.theory(place.runs / "fal")


@cache
def fal_results(place: Place) -> fal.Results:
    """The runs of adversarial learning on images."""
    return fal.practice(place.runs / "fal", data_dir=place.data_dir)


@cache
def fal_relatives(place: Place) -> fal.Results:
    """The same with the other methods."""
    return fal.practice(place.runs / "fal", tuple(fal.METHODS), data_dir=place.data_dir)


@cache
def fault_results(place: Place) -> faults.Results:
    """The runs of FedAvg among liars."""
    return faults.measure(place.runs / "faults")


def of_faults(claim: faults.Claim) -> Claim:
    """A claim about them."""
    return Claim(claim.name, f"faults/: {claim.text}", lambda place: Outcome(*claim.judge(fault_results(place))))


@cache
def part_results(study: str, part: str, place: Place) -> Any:
    """The runs of a part of a comparison."""
    chosen: Any = STUDIES[study][part]
    data = {"data_dir": place.data_dir} if chosen.needs_data else {}
    return chosen.measure(place.runs / study / part, **data)


def of_part(study: str, part: AnyPart) -> list[Claim]:
    """The claims about them."""

    def about(judge: Callable[[Any], tuple[str, bool | None]]) -> Callable[[Place], Outcome]:
        def measure(place: Place) -> Outcome:
            told, held = judge(part_results(study, part.name, place))
            return Outcome(told, held, observed=held is None)

        return measure

    return [
        Claim(f"{study}_{claim.name}", f"{study}/{part.name}: {claim.text}", about(claim.judge), part.needs_data)
        for claim in part.claims
    ]


@cache
def sleeping_results(place: Place) -> sleeping.Results:
    """The runs of asynchronous strategies over nodes that sleep."""
    return sleeping.measure((place.runs / "flower_strategies" / "sleeping").absolute())


def of_sleeping(name: str) -> Claim:
    """A claim about them."""
    text, judge = sleeping.CLAIMS[name]

    def measure(place: Place) -> Outcome:
        told, held = judge(sleeping_results(place))
        return Outcome(told, held, observed=held is None)

    return Claim(name, f"flower_strategies/: {text}", measure)


def flower_agreement(place: Place) -> Outcome:
    """The same strategies in one process, on a virtual grid, on Ray and on SuperNodes."""
    results = agreement.measure((place.runs / "flower_strategies" / "agreement").absolute())
    return Outcome(*agreement.judge(results))


def of_data_set(study: data_sets.Study) -> Claim:
    """What comes of a published data set's file."""

    def measured(place: Place) -> Outcome:
        return Outcome(data_sets.measure(study, place.runs / "data_sets", place.data_dir), None, observed=True)

    return Claim(f"data_{study.file}", study.text, measured, needs_data=True)


def of_fal(claim: fal.Claim[fal.Read], read: Callable[[Place], fal.Read], needs_data: bool) -> Claim:
    """A claim about one of them."""

    def measure(place: Place) -> Outcome:
        told, held = claim.judge(read(place))
        return Outcome(told, held, observed=held is None)

    return Claim(claim.name, f"fal/: {claim.text}", measure, needs_data)


def fzoos_attack(place: Place) -> Outcome:
    """The attacks."""
    assert place.data_dir is not None
    points = applications.attack_points(place.runs / "fzoos", place.data_dir)
    run_all([point for group in points.values() for point in group], accepted=applications.ENDED)
    return Outcome(*applications.attack_claim(applications.attacks(points)))


def fzoos_metric(place: Place) -> Outcome:
    """The metrics."""
    points = applications.metric_points(place.runs / "fzoos")
    run_all([point for group in points.values() for point in group], accepted=applications.ENDED)
    return Outcome(*applications.metric_claim(applications.scores(points)))


def sensors_apart(place: Place) -> Outcome:
    """Clients with unlike sensors."""
    return Outcome(*sensors.judge(sensors.measure(place.runs / "sensors")))


def distilled_digits(place: Place) -> Outcome:
    """A server that distils, beside one that averages."""
    return Outcome(*distillation.judge(distillation.measure(place.runs / "distillation")))


def fairness_losses(place: Place) -> Outcome:  # noqa: ARG001
    """Methods that weigh clients by their losses; nothing is kept of the runs."""
    return Outcome(*fairness.judge(fairness.measure()))


def privacy_digits(place: Place) -> Outcome:  # noqa: ARG001
    """Accuracy under noise, moving bounds and correlated noise; nothing is kept of the runs."""
    return Outcome(*privacy.judge(privacy.measure()))


def compressed_digits(place: Place) -> Outcome:  # noqa: ARG001
    """Compressors of replies; nothing is kept of the runs."""
    return Outcome(*compression.judge(compression.measure()))


def tuning_digits(place: Place) -> Outcome:
    """A search beside a grid; always anew, for it is about time."""
    with TemporaryDirectory(dir=place.runs) as fresh:
        return Outcome(*tuning.judge(tuning.measure(Path(fresh))))


CLAIMS = (
    Claim(
        "digits_fedavg",
        "digits_fedavg.toml: test accuracy after 100 rounds, mean over seeds 0 to 2, is at least 0.94",
        digits_fedavg,
    ),
    Claim(
        "mnist_shards",
        "mnist_shards.toml: mean test accuracy of 10 evaluations in a row reaches 0.97 within 100 rounds",
        mnist_shards,
        needs_data=True,
    ),
    *map(of_fedfix, fedfix.CLAIMS),
    *map(of_fzoos, fzoos.CLAIMS),
    Claim("fzoos_attack", f"fzoos/: {applications.ATTACK_CLAIM}", fzoos_attack, needs_data=True),
    Claim("fzoos_metric", f"fzoos/: {applications.METRIC_CLAIM}", fzoos_metric),
    *map(of_one_byte, one_byte.CLAIMS),
    *(of_fal(claim, fal_losses, needs_data=False) for claim in fal.THEORY_CLAIMS),
    *(of_fal(claim, fal_results, needs_data=True) for claim in fal.PRACTICE_CLAIMS),
    of_fal(fal.RELATIVES, fal_relatives, needs_data=True),
    *map(of_curriculum, curriculum.CLAIMS),
    *map(of_faults, faults.CLAIMS),
    *(claim for study, parts in STUDIES.items() for part in parts.values() for claim in of_part(study, part)),
    *map(of_data_set, data_sets.STUDIES),
    Claim("sensors", f"sensors/: {sensors.CLAIM}", sensors_apart),
    Claim("distillation", f"distillation/: {distillation.CLAIM}", distilled_digits),
    Claim("fairness", f"fairness/: {fairness.CLAIM}", fairness_losses),
    Claim("privacy", f"privacy/: {privacy.CLAIM}", privacy_digits),
    Claim("compression", f"compression/: {compression.CLAIM}", compressed_digits),
    Claim("tuning", f"tuning/: {tuning.CLAIM}", tuning_digits),
    Claim("flower_agreement", f"flower_strategies/: {agreement.CLAIM}", flower_agreement),
    *map(of_sleeping, sleeping.CLAIMS),
)


def machine() -> str:
    """Processor, cores and versions of the machine that measures."""
    listed = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{processor()}, Python {platform.python_version()}, {listed}"


def render(outcomes: dict[str, Outcome], before: str = "") -> str:
    """The text of results.md; `before` is the one that it replaces."""
    head = "Written by `python -m experiments.check`."
    today = datetime.now(UTC).date().isoformat()
    old = before.splitlines()
    rows = []
    for claim in CLAIMS:
        found = outcomes.get(claim.name)
        kept = [line for line in old if line.startswith(f"| {claim.text} |")]
        if found is None or (found.verdict == "skipped" and kept):
            rows += kept
        else:
            rows.append(f"| {claim.text} | {found.measured} | {found.verdict} | {today} | {machine()} |")
    table = ["| claim | measured | holds | date | with |", "|---|---|---|---|---|", *rows]
    return "\n".join(["# Results", "", head, "", *table, ""])


def main(
    only: Annotated[list[str] | None, typer.Option(help="Check these claims alone, by name.")] = None,
    data_dir: Annotated[Path | None, typer.Option(envvar="FEDSIM_DATA", help="Folder of the data files.")] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of the comparisons' runs; by default none is kept.")] = None,
    out: Annotated[Path, typer.Option(help="Where the table goes.")] = RESULTS,
) -> None:
    """Check the claims and write the table."""
    chosen = [claim for claim in CLAIMS if not only or claim.name in only]
    if not chosen or set(only or ()) - {claim.name for claim in chosen}:
        raise typer.BadParameter(f"name one of: {', '.join(claim.name for claim in CLAIMS)}", param_hint="--only")
    outcomes = {}
    with TemporaryDirectory() as scratch:
        place = Place(data_dir, runs or Path(scratch))
        for claim in chosen:
            outcomes[claim.name] = claim.check(place)
            typer.echo(f"{claim.name}: {outcomes[claim.name].measured}; holds: {outcomes[claim.name].verdict}")
    before = out.read_text(encoding="utf-8") if out.is_file() else ""
    out.write_text(render(outcomes, before), encoding="utf-8")
    if any(outcome.held is False for outcome in outcomes.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
