"""The runs of the two comparisons, what is measured of them, and what is claimed.

theory: the setting of FAL's theorem (`experiments.fal.theory`), with points at least 0.4, 0.6 or 0.8 apart, three seeds
each, with other points, labels, clients and parameters. The loss under attack on all training points is measured after
each round; claims are about its minimum, as the theorem is. It still falls after 300 rounds, faster the further points
are apart, while FedAvg's does no more.

practice: five clients with 5,000 images of Fashion-MNIST in all, dealt by Dir(0.1) or, nearly evenly, by Dir(100).
Three seeds, each with other images, clients and parameters, of FedAvg and FAL; one of the other methods, about which
nothing is claimed. From the first round on at full strength the attack can keep a model from learning anything, as with
one of the seeds; where its epsilon rises over the first rounds it does not. That was added when the seed was seen.
Accuracies are those of the model after the last round: clean on all 10,000 test images, under FGSM and PGD-20 on 1,000
of them, the same in all runs; AutoAttack judges two of the models on 30. Settings are those of the file; no method was
tuned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from experiments.studies import Numbers, run_all
from fedsim.configuration.evaluation import Evaluation
from fedsim.core.errors import InputError
from fedsim.core.files import write_whole
from fedsim.core.streams import Streams
from fedsim.parallel.cores import one_core_an_operation
from fedsim.problems.modules import load_start
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_problem
from fedsim.running.history import History
from fedsim.running.stored import METRICS, MODEL
from fedsim.running.sweep import Outcome, Point, expand

HERE = Path(__file__).parent
PARTS = ("theory", "practice", "relatives")
Read = TypeVar("Read")
"""What was measured of a part."""
PLAIN = ("client.adversarial=none", "strategy.kind=fedavg")
"""FedAvg by settings: as the file, without an attack."""

DELTAS = (0.4, 0.6, 0.8)
ARMS: Mapping[str, tuple[str, ...]] = {"fal": (), "fedavg": PLAIN}
SEEDS = range(3)
SMALL_LOSS = 0.03
LESS = 2.5
"""How many times less than FedAvg's FAL's loss under attack is to be."""


@dataclass(frozen=True)
class Method:
    """label: what it is called. settings: by what it differs from the file. seeds: how many."""

    label: str
    settings: tuple[str, ...] = ()
    seeds: int = 3


EVEN = ("partition.alpha=100.0",)
CALIBRATED = (
    "client.adversarial.kind=calfat",
    *("client.adversarial.scale=1.0", "client.adversarial.prior_weight=1.0", "client.adversarial.attack_loss=own"),
)
"""With the published scale of 10 a model at this rate does not learn."""
RISING = ("client.adversarial.growth={kind = 'rise', rounds = 5, begin = 0.0}",)
METHODS = {
    "fedavg": Method("FedAvg", PLAIN),
    "fal": Method("FAL"),
    "fal_rise": Method("FAL, epsilon rises for 5 rounds", RISING),
    "fat": Method("FAT, half of each batch", ("client.adversarial.mix=0.5",), seeds=1),
    "sfat": Method("SFAT", ("strategy.kind=sfat",), seeds=1),
    "calfat": Method("CalFAT", CALIBRATED, seeds=1),
    "trades": Method("TRADES", ("client.adversarial.kind=trades",), seeds=1),
    "fal_rise_iid": Method("FAL, IID, epsilon rises for 5 rounds", (*RISING, *EVEN)),
}
PRACTISED = ("fedavg", "fal", "fal_rise", "fal_rise_iid")
"""Methods about which something is claimed; the part `relatives` has the others, too."""
EXHAUSTIVE = ("fedavg", "fal")
"""Methods that AutoAttack judges, with their first seed."""
SAMPLE = 30
EPSILON = 0.1
"""The radius of all attacks on images."""


def theory_points(out: Path) -> dict[str, list[Point]]:
    """The runs of each arm: for each distance a run a seed."""
    return {
        arm: expand(
            [HERE / "theory.toml"],
            out=out / "theory" / arm,
            grid={"problem.delta": DELTAS},
            seeds=SEEDS,
            overrides=settings,
        )
        for arm, settings in ARMS.items()
    }


def practice_points(out: Path, data_dir: Path | None, methods: Sequence[str]) -> dict[str, list[Point]]:
    """The runs of each method, one a seed."""
    return {
        name: expand(
            [HERE / "fal.toml"],
            out=out / "practice" / name,
            seeds=range(METHODS[name].seeds),
            overrides=METHODS[name].settings,
            data_dir=data_dir,
        )
        for name in methods
    }


Losses = Mapping[str, Numbers]
"""By arm: the loss under attack on all training points after each round, [distances, S, T]."""


def theory(out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Losses:
    """Run what is not finished in `out`, and read it all. FedsimError: a run failed."""
    points = theory_points(out)
    run_all([point for group in points.values() for point in group], workers, on_done)
    found = {}
    for arm, group in points.items():
        curves = np.stack([_curve(point, "global_train_pgd10_l2_loss") for point in group])
        found[arm] = curves.reshape(len(DELTAS), -1, curves.shape[1])
    return found


@dataclass(frozen=True, eq=False)
class Measured:
    """A method over S seeds. clean: accuracy after each round, [S, T]. fgsm, pgd: under attack, after `rounds`, [S, E].

    points: its runs. autoattack: accuracy of the first one's model; None: it was not judged so.
    """

    clean: Numbers
    fgsm: Numbers
    pgd: Numbers
    rounds: Numbers
    points: tuple[Point, ...]
    autoattack: float | None = None


Results = Mapping[str, Measured]
"""By method."""


def practice(
    out: Path,
    methods: Sequence[str] = PRACTISED,
    *,
    data_dir: Path | None = None,
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
) -> Results:
    """Run what is not finished in `out` of some methods, and read it all. FedsimError: a run failed."""
    points = practice_points(out, data_dir, methods)
    run_all([point for group in points.values() for point in group], workers, on_done)
    return {name: _read(group, resistant(group[0]) if name in EXHAUSTIVE else None) for name, group in points.items()}


def _read(points: Sequence[Point], autoattack: float | None) -> Measured:
    fgsm, pgd = (np.stack([_curve(point, f"test_{label}_accuracy") for point in points]) for label in ("fgsm", "pgd20"))
    judged = np.isfinite(pgd[0])
    rounds = np.flatnonzero(judged).astype(np.float64) + 1.0
    clean = np.stack([_curve(point, "test_accuracy") for point in points])
    return Measured(clean, fgsm[:, judged], pgd[:, judged], rounds, tuple(points), autoattack)


def _curve(point: Point, column: str) -> Numbers:
    return History(point.folder / METRICS).to_numpy(column)


def trained(point: Point) -> tuple[Supervised, Tensor]:
    """The problem of a run that is finished, and the parameters [d] that it ended with."""
    problem = build_problem(point.experiment)
    assert isinstance(problem, Supervised)
    problem.start_from(load_start(point.folder / MODEL))
    return problem, problem.initial()


def resistant(point: Point) -> float | None:
    """The accuracy of a run's model under AutoAttack, kept beside the run; None where that is not installed."""
    place = point.folder / "autoattack.json"
    if not place.is_file():
        try:
            evaluation = Evaluation(attacks=({"kind": "autoattack", "epsilon": EPSILON},), examples=SAMPLE)
        except InputError:
            return None
        problem, params = trained(point)
        trial = evaluation.trial(Streams(point.experiment.seed))
        assert trial is not None
        with one_core_an_operation():
            found = problem.attacked(params, trial)
        write_whole(place, json.dumps({"accuracy": found["test_autoattack_accuracy"]}).encode())
    return float(json.loads(place.read_text(encoding="utf-8"))["accuracy"])


def _told(values: Numbers, digits: int) -> str:
    """Numbers [distances, S] in words."""
    each = ["/".join(f"{value:.{digits}f}" for value in row) for row in values]
    return ", ".join(f"{row} at {delta:g}" for delta, row in zip(DELTAS, each, strict=True))


def least(losses: Losses, arm: str, rounds: int | None = None) -> Numbers:
    """The minimum over the first rounds, by default all, [distances, S]."""
    found: Numbers = losses[arm][:, :, :rounds].min(axis=2)
    return found


def _small(losses: Losses) -> tuple[str, bool]:
    found = least(losses, "fal")
    return _told(found, 4), bool((found < SMALL_LOSS).all())


def _smaller(losses: Losses) -> tuple[str, bool]:
    ratio = least(losses, "fedavg") / least(losses, "fal")
    return f"times {_told(ratio, 1)}", bool((ratio >= LESS).all())


def _half_way(losses: Losses) -> tuple[str, None]:
    half = losses["fal"].shape[2] // 2
    ours, others = (least(losses, arm, half) for arm in ("fal", "fedavg"))
    return f"{_told(ours, 4)}; times {_told(others / ours, 1)}", None


def points_of(values: Numbers) -> str:
    """Differences of accuracies, one a seed, in points: their mean, and each."""
    return f"{100.0 * values.mean():.1f} points ({', '.join(f'{100.0 * value:.1f}' for value in values)})"


def _robust(results: Results, method: str) -> tuple[str, bool]:
    gain = results[method].pgd[:, -1] - results["fedavg"].pgd[:, -1]
    return points_of(gain), bool(gain.mean() >= 0.35)


def _clean(results: Results, method: str) -> tuple[str, bool]:
    cost = results["fedavg"].clean[:, -1] - results[method].clean[:, -1]
    return points_of(cost), bool(cost.mean() <= 0.15)


def _even(results: Results) -> tuple[str, bool]:
    gain = results["fal_rise_iid"].pgd[:, -1] - results["fal_rise"].pgd[:, -1]
    return points_of(gain), bool(gain.mean() >= 0.03)


def _relatives(results: Results) -> tuple[str, None]:
    others = [name for name in METHODS if name not in PRACTISED]
    fal, words = results["fal"].pgd[:, -1], []
    for name in others:
        found = results[name].pgd[:, -1]
        words.append(f"{METHODS[name].label} {points_of(found - fal[: len(found)])}")
    return "; ".join(words), None


@dataclass(frozen=True)
class Claim(Generic[Read]):
    """name, text: what is claimed of a part. judge: the numbers in words, and whether they bear it out.

    None: nothing is demanded of them.
    """

    name: str
    text: str
    judge: Callable[[Read], tuple[str, bool | None]]


THEORY_CLAIMS: tuple[Claim[Losses], ...] = (
    Claim(
        "fal_theory_loss",
        f"two layers: training loss under attack falls below {SMALL_LOSS} in 600 rounds, at each distance, each seed",
        _small,
    ),
    Claim(
        "fal_theory_ratio",
        f"two layers: its minimum is at least {LESS} times below FedAvg's, at each distance, each seed",
        _smaller,
    ),
    Claim("fal_theory_half", "two layers: both after 300 rounds", _half_way),
)
VARIANTS = (("", ""), ("_rise", " whose epsilon rises"))
PRACTICE_CLAIMS: tuple[Claim[Results], ...] = (
    *(
        Claim(
            f"fal_robust{suffix}",
            f"Fashion-MNIST, Dir(0.1): PGD-20 accuracy of FAL{words} at least 35 points above FedAvg's, mean",
            partial(_robust, method=f"fal{suffix}"),
        )
        for suffix, words in VARIANTS
    ),
    *(
        Claim(
            f"fal_clean{suffix}",
            f"Fashion-MNIST, Dir(0.1): clean accuracy of FAL{words} at most 15 points below FedAvg's, mean",
            partial(_clean, method=f"fal{suffix}"),
        )
        for suffix, words in VARIANTS
    ),
    Claim(
        "fal_even",
        "Fashion-MNIST: PGD-20 accuracy of FAL whose epsilon rises at least 3 points higher where data are even, mean",
        _even,
    ),
)
RELATIVES: Claim[Results] = Claim(
    "fal_relatives", "Fashion-MNIST, Dir(0.1): PGD-20 accuracy of other methods above FAL's", _relatives
)
