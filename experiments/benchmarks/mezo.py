"""The benchmark of memory: `python -m experiments.benchmarks.mezo`, a million parameters trained by values alone.

    p = (f(x + mu z) - f(x - mu z)) / (2 mu),  x <- x - lr p z        (MeZO; Malladi et al. 2023)

forward    the loss of the network on one batch, which is what everything is compared with
mezo       steps with x moved in place, z drawn anew each time
copies     the same with both sides as vectors of their own
rounds     fedsim's one-byte method with one machine, whose client only evaluates its model where it would compare
one_byte   the same as it is
both_sides the same, with all sides in memory at once

A process of their own, with one thread, does each of them once, to load what has to be loaded, and then again under
watch. Measured is the largest resident set (VmHWM of Linux, reset before) less the resident set before: all that the
work holds at a time, whoever allocated it. For this the allocator hands back at once what is freed; the resolution is
some 0.1 MiB. The first three hold their parameters too; the others begin with the server's model and the replica in
place.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import torch
import typer
from torch import Tensor, nn

import fedsim
from clients import one_byte as client
from fedsim.core.streams import Streams
from fedsim.engine.cohort import Cohort
from fedsim.nets.chain import ChainNetwork
from fedsim.nets.dropout import Draw
from fedsim.nets.losses import CrossEntropy
from fedsim.nets.network import Batch
from fedsim.nets.stack import Layout, Stack
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.zeroth_order import replica
from fedsim.zeroth_order.directions import Keys, draw
from fedsim.zeroth_order.perturbation import evaluate_pair, perturb_
from fedsim.zeroth_order.replica import Directions

WIDTHS = (64, 900, 900, 140, 10)
EXAMPLES = 64
MU, LR, STEPS = 1e-3, 1e-5, 3
STREAMS = Streams(3)
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"}
"""What makes glibc hand memory back when it is freed: vectors, layers and activations, which are larger than this."""


def model() -> nn.Sequential:
    """A perceptron with 996,950 parameters, on the meta device: a shape without numbers."""
    layers: list[nn.Module] = []
    with torch.device("meta"):
        for wide, narrow in pairwise(WIDTHS):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def start() -> tuple[ChainNetwork, Stack, Batch]:
    """The network, its parameters as a stack of one, and a batch."""
    shape = model()
    layout = Layout.of(dict(shape.named_parameters()))
    network = ChainNetwork.of(shape, layout, CrossEntropy())
    assert network is not None
    stack = Stack([torch.zeros(1, *size) for size in layout.shapes])
    perturb_(stack.leaves, STREAMS, Keys("start"), 0.03)
    one = torch.zeros(1, dtype=torch.int64)
    x = STREAMS.normal("x", one, (EXAMPLES, WIDTHS[0]))
    y = STREAMS.integers("y", one, (EXAMPLES,), WIDTHS[-1])
    weight = torch.full((1, EXAMPLES), 1.0 / EXAMPLES)
    return network, stack, Batch(x, y, weight, Draw(STREAMS, one, 0, 0))


def forward() -> Tensor:
    """The loss, a few times."""
    network, stack, batch = start()
    return torch.stack([network.values(stack, batch) for _ in range(STEPS)])


def mezo() -> Tensor:
    """The losses of steps in place."""
    network, stack, batch = start()
    losses = []
    for step in range(STEPS):
        keys = Keys("z", turn=step)
        plus, minus = evaluate_pair(stack.leaves, STREAMS, keys, MU, lambda: network.values(stack, batch))
        perturb_(stack.leaves, STREAMS, keys, -LR * (plus - minus) / (2.0 * MU))
        losses.append((plus + minus) / 2.0)
    return torch.stack(losses)


def copies() -> Tensor:
    """The losses of steps with vectors of both sides."""
    network, stack, batch = start()
    x, losses = stack.flat(), []
    server = torch.zeros(1, dtype=torch.int64)
    for step in range(STEPS):
        z = draw("gaussian", STREAMS, "z", server, 1, x.shape[1], turn=step)[:, 0]
        plus, minus = (network.values(network.layout.stack(x + side * MU * z), batch) for side in (1.0, -1.0))
        x = x - (LR * (plus - minus) / (2.0 * MU)).unsqueeze(1) * z
        losses.append((plus + minus) / 2.0)
    return torch.stack(losses)


def rounds(simulation: Simulation) -> None:
    """Rounds in which the client evaluates its model, as often as it has declared, and finds nothing."""

    def evaluated(cohort: Cohort, batch: Batch, x: Tensor, z: Directions, mu: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
        for _ in range(2):
            values = cohort.evaluate(cohort.stack(x), batch)
        return torch.zeros_like(values), values

    with patch.object(client, "slopes_along", evaluated):
        one_byte(simulation)


def one_byte(simulation: Simulation) -> None:
    """Rounds as they are."""
    for _ in range(STEPS):
        simulation.step()


def both_sides(simulation: Simulation) -> None:
    """Rounds of a client that may hold as much as it likes."""
    with patch.object(replica, "AT_ONCE", sys.maxsize):
        one_byte(simulation)


def simulated() -> Simulation:
    """One machine, which has joined."""
    one = torch.zeros(1, dtype=torch.int64)
    x = STREAMS.normal("x", one, (EXAMPLES, WIDTHS[0]))[0].numpy()
    y = STREAMS.integers("y", one, (EXAMPLES,), WIDTHS[-1])[0].numpy()
    experiment = fedsim.experiment(
        rounds=2 * STEPS + 1,
        strategy={"kind": "one_byte", "lr": LR},
        client={"kind": "one_byte", "batch_size": EXAMPLES},
        selection={"kind": "uniform", "fraction": 1.0},
        evaluation={"every": 0, "clients": False},
        engine={"device": "cpu"},
    )
    network = model().to_empty(device="cpu")
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.01)
    problem = fedsim.supervised(x, y, model=network, clients=[range(EXAMPLES)], test=(x[:2], y[:2]), device="cpu")
    simulation = build_simulation(experiment, problem)
    simulation.step()
    return simulation


ALONE = {"forward": forward, "mezo": mezo, "copies": copies}
AFTER_JOINING = {"rounds": rounds, "one_byte": one_byte, "both_sides": both_sides}


def joined(work: Callable[[Simulation], None]) -> Callable[[], None]:
    """A work as it goes on from a run that has begun."""
    return partial(work, simulated())


WORKS: dict[str, Callable[[], Callable[[], object]]] = {
    **{name: partial(partial, work) for name, work in ALONE.items()},
    **{name: partial(joined, work) for name, work in AFTER_JOINING.items()},
}
"""What prepares each work, and returns it."""


def watched(work: Callable[[], object]) -> float:
    """The most that a work holds in MiB, in this process; see the module's text. OSError: not on Linux."""
    work()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is that of now
    before = _resident("VmRSS")
    work()
    return (_resident("VmHWM") - before) / 1024.0


def _resident(which: str) -> int:
    """A line of the process's status, in KiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(which))


def peaks() -> dict[str, float]:
    """The most that each work holds in MiB, measured in a process of their own."""
    command = [sys.executable, "-m", "experiments.benchmarks.mezo", "--here"]
    done = subprocess.run(command, env=os.environ | AT_ONCE, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(here: Annotated[bool, typer.Option(hidden=True)] = False) -> None:
    """Measure all works and print what they hold."""
    if here:
        torch.set_num_threads(1)
        typer.echo(json.dumps({name: watched(prepare()) for name, prepare in WORKS.items()}))
        return
    found = peaks()
    parameters = sum(parameter.numel() for parameter in model().parameters())
    typer.echo(f"{parameters:,} parameters, {parameters * 4 / 2**20:.2f} MiB")
    for name, most in found.items():
        base = "rounds" if name in AFTER_JOINING else "forward"
        typer.echo(f"{name:10} {most:6.2f} MiB, {most / found[base]:.2f} of {base}")


if __name__ == "__main__":
    typer.run(main)
