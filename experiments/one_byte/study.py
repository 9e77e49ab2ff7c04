"""The runs of the comparison, what is measured of them, and what is claimed.

Ten clients with equal shares of the shuffled examples, all of them in every round. Digits: a perceptron of 128 hidden
units, d = 9,610, three seeds, each with another first model, other shares and other directions. Fashion-MNIST: logistic
regression, d = 7,850, one seed. Directions have random signs for all methods.

Rates were found with short runs of seed 0, by test accuracy. On the digits every file has the best of a factor-2 grid:
with twice the rate runs diverged or were behind, with half of it they were behind. The codes fp32 and sign have the
byte's rate. FedAvg with local epochs has, of 5, 10 and 20 epochs and the rates 0.3, 0.5 and 1, what took the fewest
rounds to 97 %: a rival that also wants to send little. FedAvg with one step a round is what the methods imitate that
take one step a round. On Fashion-MNIST the rates are the better ones of two, and the runs too short to converge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.studies import Numbers, run_all
from fedsim.running.history import History
from fedsim.running.stored import METRICS
from fedsim.running.sweep import Outcome, Point, expand

HERE = Path(__file__).parent
CLIENTS = 10
METHODS = {
    "one_byte": "one byte",
    "fp32": "the same in fp32",
    "sign": "the same, signs alone",
    "decomfl": "DeComFL",
    "fedes": "FedES",
    "fedkseed": "FedKSeed",
    "fedzo": "FedZO",
    "fedavg": "FedAvg, local epochs",
    "fedavg_1": "FedAvg, one step",
}
"""What they are called in the table and the picture; an experiment file each, but for the other codes."""
CODES = ("one_byte", "fp32", "sign")
FILES = {name: "one_byte" if name in CODES else name for name in METHODS}
VARIED = {name: (f"strategy.codec={name}",) for name in ("fp32", "sign")}
"""Settings by which a method differs from its file."""
MARGIN = 0.005
"""How far below FedAvg's final accuracy counts as reached."""


@dataclass(frozen=True)
class Part:
    """A data set: for how many seeds, and by what its runs, and those of single methods, differ from the files.

    level: the accuracy that the table tells the bytes of.
    """

    name: str
    dimension: int
    seeds: int
    level: float
    settings: tuple[str, ...] = ()
    own: Mapping[str, tuple[str, ...]] | None = None

    def overrides(self, method: str) -> tuple[str, ...]:
        """All settings of a method by which it differs from its file."""
        return (*self.settings, *VARIED.get(method, ()), *(self.own or {}).get(FILES[method], ()))


PARTS = {
    "digits": Part("Digits", 9610, 3, 0.9),
    "fashion": Part(
        "Fashion-MNIST",
        7850,
        1,
        0.7,
        ("problem.dataset={kind = 'fashion_mnist', standardize = true}", "problem.model=logistic"),
        {
            "one_byte": ("strategy.lr=0.03", "client.batch_size=64", "rounds=60"),
            "decomfl": ("strategy.lr=0.01", "client.batch_size=64", "rounds=60"),
            "fedes": ("strategy.lr=0.05", "client.batch_size=64", "rounds=30"),
            "fedkseed": ("strategy.lr=0.002", "client.batch_size=64", "rounds=6"),
            "fedzo": ("client.lr=0.01", "client.batch_size=64", "rounds=6"),
            "fedavg": ("client.lr=0.02", "client.batch_size=64", "client.epochs=5", "rounds=10"),
            "fedavg_1": ("client.lr=0.05", "rounds=60"),
        },
    ),
}


@dataclass(frozen=True, eq=False)
class Measured:
    """A method on a data set, over S seeds.

    accuracy: on the test set at the evaluations, [S, E]. uplink: bytes that a client had sent until then, mean over
    the clients, [S, E]. sent, queries: of all clients in each round, [S, T]. points: the runs.
    """

    accuracy: Numbers
    uplink: Numbers
    sent: Numbers
    queries: Numbers
    points: tuple[Point, ...]

    @property
    def final(self) -> Numbers:
        """After the last round, [S]."""
        last: Numbers = self.accuracy[:, -1]
        return last

    def spent(self, level: float) -> float:
        """Bytes a client until the mean accuracy over the seeds is first at least `level`; infinity: it never is."""
        there = np.flatnonzero(self.accuracy.mean(axis=0) >= level)
        return float(self.uplink[:, there[0]].mean()) if len(there) else math.inf


Results = Mapping[str, Measured]
"""By method."""


def measure(
    part: str,
    out: Path,
    *,
    data_dir: Path | None = None,
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
) -> Results:
    """Run what is not finished in `out`, one run folder a seed, and read it all. FedsimError: a run failed."""
    chosen = PARTS[part]
    points = {
        method: expand(
            [HERE / f"{file}.toml"],
            out=out / part / method,
            seeds=range(chosen.seeds),
            overrides=chosen.overrides(method),
            data_dir=data_dir,
        )
        for method, file in FILES.items()
    }
    run_all([point for group in points.values() for point in group], workers, on_done)
    return {method: _read(group) for method, group in points.items()}


def _read(points: Sequence[Point]) -> Measured:
    accuracy, sent, queries = list[Numbers](), list[Numbers](), list[Numbers]()
    for point in points:
        history = History(point.folder / METRICS)
        accuracy.append(history.to_numpy("test_accuracy"))
        sent.append(history.to_numpy("bytes_up"))
        queries.append(history.to_numpy("queries"))
    judged = np.isfinite(accuracy[0])
    uplink = np.stack(sent).cumsum(axis=1) / CLIENTS
    curves = np.stack(accuracy)[:, judged]
    return Measured(curves, uplink[:, judged], np.stack(sent), np.stack(queries), tuple(points))


def nearly(one: Measured) -> float:
    """Its final accuracy, but for the margin."""
    return float(one.final.mean()) - MARGIN


def times_fewer(results: Results, rival: str, level: float) -> dict[str, float]:
    """By how much less than the rival, which has that accuracy at some time, each method sends until it is there.

    0: a method never is.
    """
    return {method: results[rival].spent(level) / one.spent(level) for method, one in results.items()}


def said_times(ratio: float) -> str:
    """A ratio of `times_fewer` in words."""
    return "never" if ratio == 0.0 else f"{ratio:,.0f}" if ratio >= 10.0 else f"{ratio:.2g}"


def scalars(method: str, one: Measured, dimension: int) -> int:
    """Bytes that a client sends in a round, by the method's rule."""
    strategy, client = (getattr(one.points[0].experiment, of) for of in ("strategy", "client"))
    rules: dict[str, Callable[[], int]] = {
        "one_byte": lambda: strategy.samples,
        "fp32": lambda: 4 * strategy.samples,
        "sign": lambda: math.ceil(strategy.samples / 4),
        "decomfl": lambda: 4 * strategy.steps * strategy.perturbations,
        "fedes": lambda: 4 * strategy.population,
        "fedkseed": lambda: 8 * client.steps,
    }
    return rules.get(method, lambda: 4 * dimension)()


def _as_good(results: Results) -> tuple[str, bool]:
    byte, full = results["one_byte"], results["fp32"]
    found, other = byte.final.mean(), full.final.mean()
    exact = bool((byte.sent == byte.queries / 2).all())
    numbers = f"{found:.2%} and {other:.2%}; {byte.sent.sum():.0f} bytes for {byte.queries.sum():.0f} evaluations"
    return numbers, bool(abs(found - other) <= 0.01) and exact


def _fewer(rival: str, factor: float, level: float | None = None) -> Callable[[Results], tuple[str, bool]]:
    """At that accuracy, or at the rival's final one but for the margin."""

    def judge(results: Results) -> tuple[str, bool]:
        wanted = nearly(results[rival]) if level is None else level
        ratios = times_fewer(results, rival, wanted)
        told = ", ".join(f"{METHODS[name]} {said_times(ratio)}" for name, ratio in ratios.items() if name != rival)
        numbers = f"to {wanted:.2%}, times fewer than its {results[rival].spent(wanted):,.0f} bytes: {told}"
        return numbers, bool(ratios["one_byte"] >= factor)

    return judge


def _counted(part: str) -> Callable[[Results], tuple[str, bool]]:
    def judge(results: Results) -> tuple[str, bool]:
        each = {name: scalars(name, one, PARTS[part].dimension) for name, one in results.items()}
        told = ", ".join(f"{METHODS[name]} {size:,}" for name, size in each.items())
        return told, all(bool((one.sent == CLIENTS * each[name]).all()) for name, one in results.items())

    return judge


@dataclass(frozen=True)
class Claim:
    """name, part, text: what is claimed of a part. judge: the numbers in words, and whether they bear it out."""

    name: str
    part: str
    text: str
    judge: Callable[[Results], tuple[str, bool]]


CLAIMS = (
    Claim(
        "one_byte_as_good",
        "digits",
        "digits: scalars of one byte end within a point of scalars in fp32, and a pair of evaluations costs one byte",
        _as_good,
    ),
    Claim(
        "one_byte_thousandth",
        "digits",
        "digits: one byte reaches the final accuracy of FedAvg with one step a round, less half a point, with 1/1000 of"
        " its bytes",
        _fewer("fedavg_1", 1000.0),
    ),
    Claim(
        "one_byte_epochs",
        "digits",
        "digits: to 95 % one byte sends at most 1/50 of what FedAvg with 20 local epochs does",
        _fewer("fedavg", 50.0, 0.95),
    ),
    Claim(
        "one_byte_counted", "digits", "digits: every method sends in every round what its rule says", _counted("digits")
    ),
)
