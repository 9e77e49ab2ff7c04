"""The runs of the comparison, what is measured of them, and what is claimed.

100 clients with 400 images of Fashion-MNIST each, 10 of them a round, a small convolutional network, five local epochs
of batches of ten. A curriculum, of examples or of clients, begins with the easiest fifth under the global model and has
everything in after four fifths of the steps; `anti` begins with the hardest, `random` with any. Steps are counted as
the authors' code counts them, the last pass is completed: 240 in a round without a curriculum, 205 to 245 with one. A
run's accuracy is the mean test accuracy after each of its last ten rounds, not the best of them.

The numbers that were published are about CIFAR-10, 100 rounds, ten local epochs and 500 images a client (Vahidian et
al. 2023, "When Do Curricula Work in Federated Learning?", from the notebooks beside the authors' code), so that signs
can be compared with ours, and levels cannot. Half as many images of CIFAR-10 are in a part of their own, at the same
rate 0.01; part of the published runs with two classes a client have 0.001.

Label noise: 40 % of the labels are drawn anew from all ten classes, so that 36 % are wrong, which is how the option
counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.studies import Numbers, run_all
from fedsim.configuration.tables import Experiment
from fedsim.core.files import write_whole
from fedsim.problems.datasets import DataFolder
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_problem, build_simulation
from fedsim.running.history import History
from fedsim.running.stored import METRICS, open_run
from fedsim.running.sweep import Outcome, Point, expand

HERE = Path(__file__).parent
SEEDS = range(3)
LAST = 10
"""A run's accuracy is the mean over so many rounds."""
CLIENTS = 100
METHODS = {
    "vanilla": "no curriculum",
    "curriculum": "easy examples first",
    "random": "random examples first",
    "anti": "hard examples first",
    "clients": "easy clients first",
    "clients_random": "random clients first",
    "clients_anti": "hard clients first",
    "both": "easy clients and examples first",
}
"""What they are called in the tables and pictures."""
FILES = {name: "clients" if name.startswith("clients") or name == "both" else "curriculum" for name in METHODS}
FILES["vanilla"] = "vanilla"
VARIED = {
    "random": ("client.curriculum.order=random",),
    "anti": ("client.curriculum.order=anti",),
    "clients_random": ("selection.order=random",),
    "clients_anti": ("selection.order=anti",),
    "both": ("client.curriculum={pacing = {kind = 'linear', a = 0.8, b = 0.2}, budget = 'published'}",),
}
"""Settings by which a method differs from its file."""
AT_ONCE = 2000
"""Examples that are scored at once."""
SNAPSHOTS = (1, 5, 15, 30)
"""After which rounds all scores are kept of a run that is watched."""


@dataclass(frozen=True)
class Setting:
    """Who has which images. settings: those of problem and partition. published: accuracies in percent, by method."""

    title: str
    rounds: int
    settings: tuple[str, ...]
    published: Mapping[str, float] = field(default_factory=dict)

    def overrides(self, method: str, rounds: int | None = None) -> tuple[str, ...]:
        """All settings by which a method's run differs from its file. rounds: instead of the setting's own."""
        length = self.rounds if rounds is None else rounds
        paced = (f"selection.rounds={length}",) if FILES[method] == "clients" else ()
        return (*self.settings, f"rounds={length}", *paced, *VARIED.get(method, ()))


_TWO_CLASSES = "kind = 'pathological', classes_per_client = 2, assignment = 'first-deterministic'"
SETTINGS = {
    "noniid": Setting(
        "Fashion-MNIST, two classes a client",
        50,
        (f"partition={{{_TWO_CLASSES}, clients = {CLIENTS}, examples = 40000}}",),
    ),
    "iid": Setting(
        "Fashion-MNIST, equal clients", 30, (f"partition={{kind = 'iid', clients = {CLIENTS}, examples = 40000}}",)
    ),
    "noise": Setting(
        "Fashion-MNIST, equal clients, 40 % of the labels drawn anew",
        30,
        (f"partition={{kind = 'iid', clients = {CLIENTS}, examples = 40000, noise = 0.36}}",),
    ),
    "difficulty": Setting(
        "Fashion-MNIST, clients by difficulty",
        50,
        (f"partition={{kind = 'difficulty', clients = {CLIENTS}, examples = 40000, model = 'lenet'}}",),
        {"vanilla": 52.73, "clients": 59.92, "clients_random": 55.28, "clients_anti": 47.24},
    ),
    "cifar": Setting(
        "Part of CIFAR-10, two classes a client",
        50,
        (
            "problem.dataset={kind = 'cifar10', standardize = true}",
            f"partition={{{_TWO_CLASSES}, clients = {CLIENTS}, examples = 20000}}",
        ),
        {"vanilla": 41.48, "curriculum": 47.55, "random": 40.57, "anti": 34.24},
    ),
}
PARTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "noniid": {"noniid": ("vanilla", "curriculum", "anti")},
    "iid": {"iid": ("vanilla", "curriculum")},
    "noise": {"noise": ("vanilla", "curriculum")},
    "clients": {
        "difficulty": ("vanilla", "clients", "clients_random", "clients_anti", "both"),
        "noniid": ("vanilla", "clients"),
    },
    "cifar": {"cifar": ("vanilla", "curriculum", "random", "anti")},
}
"""The methods that are run, by part and setting; parts share runs."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A method in a setting, over S seeds.

    accuracy: on the test set after every round, [S, T]. down: bytes that the server sent in each run, [S]. points: the
    runs.
    """

    accuracy: Numbers
    down: Numbers
    points: tuple[Point, ...]

    @property
    def final(self) -> Numbers:
        """Percent, mean over the last rounds, [S]."""
        means: Numbers = 100.0 * self.accuracy[:, -LAST:].mean(axis=1)
        return means


Results = Mapping[str, Mapping[str, Measured]]
"""By setting and method."""


def measure(
    part: str,
    out: Path,
    *,
    data_dir: Path | None,
    rounds: int | None = None,
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
) -> Results:
    """Run what is not finished of a part in `out`, one run folder a seed, and read it all. FedsimError: a run failed.

    rounds: of every run, instead of the settings' own.
    """
    points = {
        (name, method): expand(
            [HERE / f"{FILES[method]}.toml"],
            out=out / name / method,
            seeds=SEEDS,
            overrides=SETTINGS[name].overrides(method, rounds),
            data_dir=data_dir,
        )
        for name, methods in PARTS[part].items()
        for method in methods
    }
    run_all([point for group in points.values() for point in group], workers, on_done)
    return {name: {method: _read(points[name, method]) for method in methods} for name, methods in PARTS[part].items()}


def _read(points: Sequence[Point]) -> Measured:
    histories = [History(point.folder / METRICS) for point in points]
    accuracy = np.stack([history.to_numpy("test_accuracy") for history in histories])
    down = np.array([history.to_numpy("bytes_down").sum() for history in histories])
    return Measured(accuracy, down, tuple(points))


@dataclass(frozen=True, eq=False)
class Watched:
    """What one run makes of its examples.

    scores: for each of `SNAPSHOTS` that the run comes to, the loss of all n training examples under the global model
    after it, [R, n]. wrong: bool [n], whether an example's label is noise.
    """

    scores: Numbers
    wrong: NDArray[np.bool_]

    def wrong_among_easiest(self, share: float) -> Numbers:
        """Of the easiest share of the examples, how large a part has a wrong label, [R]."""
        easiest = np.argsort(self.scores, axis=1)[:, : int(share * len(self.wrong))]
        parts: Numbers = self.wrong[easiest].mean(axis=1)
        return parts


def selected(point: Point) -> NDArray[np.bool_]:
    """Who took part in which round of a run that is done, bool [T, N]."""
    trace = open_run(point.folder).trace()
    assert trace is not None
    found = np.zeros((len(trace["selected"]), len(trace["participation"])), dtype=np.bool_)
    for round_, clients in trace["selected"].items():
        found[int(round_), clients] = True
    return found


def watch(point: Point) -> Watched:
    """Do a run once more and look on; what was seen is kept beside its folder."""
    place = point.folder.parent / f"watched-{point.folder.name}.npz"
    if not place.is_file():
        seen = _watch(point.experiment)
        packed = BytesIO()
        np.savez_compressed(packed, scores=seen.scores, wrong=seen.wrong)
        write_whole(place, packed.getvalue())
    with np.load(place) as stored:
        return Watched(**stored)


def _watch(experiment: Experiment) -> Watched:
    problem = build_problem(experiment)
    assert isinstance(problem, Supervised)
    simulation, scores = build_simulation(experiment, problem), []
    for row in simulation:
        if row["round"] in SNAPSHOTS:
            scores.append(_losses(problem, simulation.params))
    clean = experiment.problem.made["dataset"].load(DataFolder(experiment.data_dir))
    dealt = problem.data.order.cpu().numpy()
    wrong = (problem.dataset.y != clean.y)[dealt]
    return Watched(np.array(scores)[:, dealt], wrong)


def _losses(problem: Supervised, params: Tensor) -> Numbers:
    """Of all training examples, [n]."""
    model, found = problem.module(params), []
    with torch.no_grad():
        for begin in range(0, len(problem.data.x), AT_ONCE):
            some = slice(begin, begin + AT_ONCE)
            found.append(problem.model.loss.examples(model(problem.data.x[some]), problem.data.y[some]))
    losses: Numbers = torch.cat(found).double().cpu().numpy()
    return losses


def said_each(values: Numbers, sign: str = "") -> str:
    """The mean over the seeds, and each seed's number in brackets, in percent or points. sign: "+" to write it."""
    return f"{values.mean():{sign}.1f} ({', '.join(f'{value:{sign}.1f}' for value in values)})"


def lead(methods: Mapping[str, Measured], method: str) -> Numbers:
    """By how many points a method is ahead of no curriculum, [S]; a seed has the same data and first model for both."""
    difference: Numbers = methods[method].final - methods["vanilla"].final
    return difference


@dataclass(frozen=True)
class Claim:
    """text: what is claimed of a setting, once its part has run. methods: whose leads are told.

    holds: whether the lead of the first of them, mean over the seeds, bears it out; None: nothing is demanded of it.
    """

    name: str
    part: str
    setting: str
    text: str
    methods: tuple[str, ...]
    holds: Callable[[float], bool] | None = None

    def judge(self, results: Results) -> tuple[str, bool | None]:
        """The numbers in words, and the verdict."""
        ran = results[self.setting]
        levels = [f"{METHODS[name]} {said_each(one.final)}" for name, one in ran.items()]
        leads = [f"{METHODS[name]} {said_each(lead(ran, name), '+')}" for name in self.methods]
        told = f"{', '.join(levels)}; ahead of no curriculum by: {', '.join(leads)}"
        return told, None if self.holds is None else self.holds(float(lead(ran, self.methods[0]).mean()))


CLAIMS = (
    Claim(
        "curriculum_anti",
        "noniid",
        "noniid",
        "two classes a client: hard examples first end at least 8 points below no curriculum",
        ("anti",),
        lambda ahead: ahead <= -8.0,
    ),
    Claim(
        "curriculum_noniid",
        "noniid",
        "noniid",
        "two classes a client: easy examples first end at most 1 point below no curriculum",
        ("curriculum",),
        lambda ahead: ahead >= -1.0,
    ),
    Claim(
        "curriculum_noise",
        "noise",
        "noise",
        "equal clients, 40 % of the labels drawn anew: easy examples first end at least 4 points above no curriculum",
        ("curriculum",),
        lambda ahead: ahead >= 4.0,
    ),
    Claim(
        "curriculum_iid",
        "iid",
        "iid",
        "equal clients, clean labels: easy examples first end within 2.5 points of no curriculum",
        ("curriculum",),
        lambda ahead: abs(ahead) <= 2.5,
    ),
    Claim(
        "curriculum_clients",
        "clients",
        "difficulty",
        "clients by difficulty: how far a curriculum of clients is ahead of uniform selection; published of equal"
        " clients on CIFAR-10: easy first +7.2, hard first -5.5, random +2.6",
        ("clients", "clients_random", "clients_anti", "both"),
    ),
    Claim(
        "curriculum_clients_noniid",
        "clients",
        "noniid",
        "two classes a client: how far a curriculum of clients is ahead of uniform selection; published of clients with"
        " Dirichlet shares on CIFAR-10: easy first +5.7 to +6.8",
        ("clients",),
    ),
    Claim(
        "curriculum_cifar",
        "cifar",
        "cifar",
        "20,000 images of CIFAR-10, two classes a client: how far curricula are ahead; published of all 50,000 and"
        " longer training: easy first +6.1, random -0.9, hard first -7.2",
        ("curriculum", "random", "anti"),
    ),
)
