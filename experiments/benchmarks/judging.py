"""What judging costs beside training: `python -m experiments.benchmarks.judging`, in some five minutes.

The protocol of pfl-research's benchmark on CIFAR-10, with 1,000 clients of 20 images: 50 of them a round, one epoch of
batches of 10, a network of two convolutions with dropout. The images are those of CIFAR-10's part in the folder named
by FEDSIM_DATA, or random ones of the same shape and number.

fedsim and a plain loop take turns, at a round of training and at a judgement of a model: the loss and the accuracy of
the test set, and each client's accuracy on its own images. How often a model is judged is fedsim's default; the plain
loop is told to judge the same as often, and, in rows of its own, the test set alone every 10 rounds, as pfl-research
does, and all in every round.

A second table is of models of the clients' own: a hundred of them, each judged on examples of its client, beside one
model for all, judged on the same examples, in turns. Outputs are what the models say; a judgement has what is made of
them, too: loss and accuracy of all the examples, and of each client.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fedsim
from experiments.benchmarks.engine import Fedsim
from experiments.benchmarks.peers.networks import initialised
from experiments.benchmarks.peers.plain import PlainLoop
from experiments.benchmarks.peers.work import Peer, Work, threads
from fedsim.core.data_files import DataFolder
from fedsim.parallel.cores import one_core_an_operation
from fedsim.problems.datasets.cifar import CIFAR10, SUBSET
from fedsim.running.build import build_simulation
from fedsim.running.personal import own_models

SHAPE, CLASSES = (3, 32, 32), 10
AS_PFL = 10
"""Rounds between two evaluations of pfl-research's benchmarks."""


def network(shape: tuple[int, int, int] = SHAPE, hidden: int = 128) -> nn.Module:
    """Two 3x3 convolutions of 32 and 64 channels, pooling, and a hidden layer, with dropout after either."""
    channels, height, width = shape
    left = 64 * ((height - 4) // 2) * ((width - 4) // 2)
    return initialised(
        lambda: nn.Sequential(
            *(nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Dropout(0.25), nn.Flatten(), nn.Linear(left, hidden), nn.ReLU(), nn.Dropout(0.5)),
            nn.Linear(hidden, CLASSES),
        )
    )


def protocol(clients: int = 1_000, per_round: int = 50, test: int = 5_000) -> Work:
    """The work: clients of 20 images each."""
    x, y, x_test, y_test = images(20 * clients, test)
    return Work(
        name="pfl-research's CIFAR-10",
        x=x,
        y=y,
        clients=np.split(np.arange(20 * clients), clients),
        x_test=x_test,
        y_test=y_test,
        model=network,
        forward=_none,
        epochs=1,
        batch_size=10,
        lr=0.1,
        rounds=1,
        per_round=per_round,
    )


def images(train: int, test: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images float32 [n, 3, 32, 32] and classes int64 [n], to train on and to test on."""
    place = os.environ.get("FEDSIM_DATA")
    if place is not None and (Path(place) / SUBSET).is_dir():
        data = CIFAR10(files="subset", standardize=True).load(DataFolder(Path(place)))
        found = (data.x[:train], data.y[:train], data.x_test[:test], data.y_test[:test])
    else:
        random = np.random.default_rng(0)
        y, y_test = random.integers(0, CLASSES, train), random.integers(0, CLASSES, test)
        drawn = (random.standard_normal((size, *SHAPE), np.float32) for size in (train, test))
        found = (next(drawn), y, next(drawn), y_test)
    inputs, labels, test_inputs, test_labels = map(torch.from_numpy, found)
    return inputs, labels.long(), test_inputs, test_labels.long()


def _none(*_: object) -> Tensor:
    raise NotImplementedError("the plain loop calls the module")


def judged_plainly(model: nn.Module, work: Work, *, clients: bool) -> dict[str, float]:
    """What fedsim measures of a model, in plain PyTorch: batches of 1,000, without gradients. clients: of them, too."""
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(x) for x in torch.split(work.x_test, 1_000)])
        found = {
            "test_loss": float(F.cross_entropy(outputs, work.y_test)),
            "test_accuracy": float((outputs.argmax(1) == work.y_test).double().mean()),
        }
        if clients:
            right = torch.cat([model(x).argmax(1) for x in torch.split(work.x, 1_000)]) == work.y
            means = torch.stack([right[torch.from_numpy(own)].double().mean() for own in work.clients])
            tenth = float(torch.quantile(means, 0.1))
            found |= {"client_accuracy_mean": float(means.mean()), "client_accuracy_p10": tenth}
            found["client_accuracy_worst"] = float(means.min())
    model.train()
    return found


def pace_of(work: Work) -> int:
    """After how many rounds fedsim judges by default."""
    experiment = fedsim.experiment(
        client={"kind": "sgd", "epochs": work.epochs, "batch_size": work.batch_size, "lr": work.lr},
        selection={"kind": "uniform", "count": work.cohort_size},
    )
    problem = fedsim.supervised(
        work.x, work.y, model=work.model(), clients=work.clients, test=(work.x_test, work.y_test)
    )
    return build_simulation(experiment, problem).pace.evaluation.rounds


@dataclass
class Measured:
    """Seconds of each round of training and of each judgement; `test`: of one of the test set alone."""

    training: list[float] = field(default_factory=list)
    judging: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)

    def together(self, judging: str, every: int) -> float:
        """Seconds of a round in the mean, of which every so many ends with such a judgement; of medians."""
        judged: list[float] = getattr(self, judging)
        return statistics.median(self.training) + statistics.median(judged) / every


def measure(work: Work, turns: int, counts: tuple[int, ...]) -> dict[str, Measured]:
    """Let fedsim and the plain loop with these numbers of threads take turns."""
    ours, loops = Fedsim(work, "auto"), {f"plain loop ({count})": PlainLoop(work, count) for count in counts}
    everyone: list[Peer] = [ours, *loops.values()]
    for engine in everyone:
        engine.start()
        engine.round()
    found = {"fedsim": Measured()} | {name: Measured() for name in loops}

    def judged(*, clients: bool) -> None:
        assert ours.simulation is not None, "it has started"
        with one_core_an_operation():
            ours.problem.evaluate(ours.simulation.state.params, clients=clients)

    for _ in range(turns):
        found["fedsim"].training.append(_seconds(ours.round))
        found["fedsim"].judging.append(_seconds(partial(judged, clients=True)))
        found["fedsim"].test.append(_seconds(partial(judged, clients=False)))
        for name, loop in loops.items():
            own = found[name]
            own.training.append(_seconds(loop.round))
            with threads(loop.threads):
                own.judging.append(_seconds(partial(judged_plainly, loop.model, work, clients=True)))
                own.test.append(_seconds(partial(judged_plainly, loop.model, work, clients=False)))
    return found


@dataclass(frozen=True)
class Setting:
    """A hundred clients whose models are judged. shape: of an input. count: examples of each, or of the largest.

    alike: whether all have as many; if not, from one to so many. whole: whether a client's own model is all of it, or
    its last layer.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    alike: bool = True
    whole: bool = True

    def model(self) -> nn.Module:
        """64-64-10, or the network of convolutions."""
        if len(self.shape) > 1:
            return network((1, self.shape[1], self.shape[2]))
        return initialised(lambda: nn.Sequential(nn.Linear(self.shape[0], 64), nn.ReLU(), nn.Linear(64, CLASSES)))

    @property
    def label(self) -> str:
        """The network, what is the client's own of it, and how many examples clients have."""
        many = f"{self.count}" if self.alike else f"1 to {self.count}"
        return f"{self.name}{'' if self.whole else ', head'}, {many} each"


SETTINGS = (
    *(Setting("MLP 64-64-10", (64,), count) for count in (5, 20, 100)),
    Setting("MLP 64-64-10", (64,), 39, alike=False),
    Setting("MLP 64-64-10", (64,), 20, whole=False),
    *(Setting("CNN", (1, 8, 8), count) for count in (5, 20)),
)
OWN = 100
"""Clients with models of their own."""


@dataclass
class Judgements:
    """Seconds of the outputs, and of whole judgements: of one model for all, and of each client's own."""

    everybodys: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    everybodys_judged: list[float] = field(default_factory=list)
    own_judged: list[float] = field(default_factory=list)


def judged_by_their_own(setting: Setting, turns: int, clients: int = OWN) -> Judgements:
    """Judge one model for all and the clients' own after a round of training, in turns."""
    random = np.random.default_rng(0)
    counts = np.full(clients, setting.count) if setting.alike else random.integers(1, setting.count + 1, clients)
    ends, trained = np.cumsum(counts)[:-1], 10 * clients
    x, tests = (random.standard_normal((size, *setting.shape), np.float32) for size in (trained, counts.sum()))
    y, answers = (random.integers(0, CLASSES, len(inputs)) for inputs in (x, tests))
    problem = fedsim.supervised(
        x,
        y,
        model=setting.model(),
        clients=np.split(np.arange(trained), clients),
        test=(tests, answers),
        test_clients=np.split(np.arange(len(tests)), ends),
        shared="all" if setting.whole else "body",
    )
    training = {"kind": "ditto", "lam": 0.1} if setting.whole else {"kind": "sgd"}
    experiment = fedsim.experiment(
        rounds=1,
        client=training | {"steps": 1, "batch_size": 10, "lr": 0.1},
        selection={"kind": "uniform", "count": clients},
    )
    simulation = build_simulation(experiment, problem)
    for _ in simulation:
        pass
    parts, private, state = simulation.parts, problem.model.private, simulation.state
    params = state.params if private is None else private.join(state.params, private.initial.unsqueeze(0))[0]
    rows, count = problem.judged.own()

    def everybodys() -> Tensor:
        return problem.outputs(params, rows)

    def own() -> Tensor:
        return own_models(parts.engine, problem, parts.strategy, state, None).outputs(rows, count)

    def judged(outputs: Callable[[], Tensor]) -> dict[str, float]:
        return problem.judged.personal_scores("personal", outputs(), rows, count)

    found = Judgements()
    with one_core_an_operation():
        everybodys(), own()
        for _ in range(turns):
            found.everybodys.append(_seconds(everybodys))
            found.own.append(_seconds(own))
            found.everybodys_judged.append(_seconds(partial(judged, everybodys)))
            found.own_judged.append(_seconds(partial(judged, own)))
    return found


def table_of_own(found: dict[str, Judgements]) -> Table:
    """A row a setting, in ms, of medians; how many times the model for all its own cost."""
    table = Table(title=f"{OWN} models of the clients' own, and one for all on the same examples: ms")
    for column in ("models", "outputs of one", "of each", "times", "a judgement of one", "of each", "times"):
        table.add_column(column, justify="left" if column == "models" else "right")
    for label, taken in found.items():
        cells = [label]
        for one, each in ((taken.everybodys, taken.own), (taken.everybodys_judged, taken.own_judged)):
            first, second = statistics.median(one), statistics.median(each)
            cells += [f"{1000 * first:,.2f}", f"{1000 * second:,.2f}", f"{second / first:.2f}"]
        table.add_row(*cells)
    return table


def _seconds(function: Callable[[], object]) -> float:
    before = time.perf_counter()
    function()
    return time.perf_counter() - before


def table_of(found: dict[str, Measured], every: int, work: Work) -> Table:
    """A row a way to judge of an engine; the plain loop that is told to judge as fedsim does is 1."""
    judged = len(work.y_test) + len(work.y)
    table = Table(title=f"{work.name}: ms a round; {judged:,} images judged, or {len(work.y_test):,} of the test set")
    for column in ("engine", "judges", "training", "a judgement", "a round, judging counted", "times plain loop"):
        table.add_column(column, justify="left" if column in ("engine", "judges") else "right")
    ways = [(f"all, every {every} rounds", "judging", every)]
    others = [(f"the test set, every {AS_PFL} rounds", "test", AS_PFL), ("all, every round", "judging", 1)]
    plain = min(own.together("judging", every) for name, own in found.items() if name != "fedsim")
    for name, own in found.items():
        for words, judging, often in ways + others:
            took = own.together(judging, often)
            times = (statistics.median(own.training), statistics.median(getattr(own, judging)), took)
            table.add_row(name, words, *(f"{1000 * seconds:,.0f}" for seconds in times), f"{took / plain:.2f}")
    return table


def main(
    turns: Annotated[int, typer.Option(min=1, help="Rounds and judgements of each engine.")] = 5,
    own: Annotated[int, typer.Option(min=0, help="Judgements of clients' own models; 0: none.")] = 31,
    only_own: Annotated[bool, typer.Option(help="Judge clients' own models alone.")] = False,
) -> None:
    """Print what a round takes, with what its judgements take, and what judging the clients' own models does."""
    console = Console(width=120)
    if own:
        console.print(table_of_own({setting.label: judged_by_their_own(setting, own) for setting in SETTINGS}))
    if only_own:
        return
    work = protocol()
    counts = tuple(sorted({1, torch.get_num_threads()}))
    found = measure(work, turns, counts)
    console.print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} cores, {turns} turns; medians")
    console.print(table_of(found, pace_of(work), work))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
