"""The pictures of the comparisons: losses under attack, accuracies over rounds, and attacked images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.fal.study import ARMS, DELTAS, METHODS, SMALL_LOSS, Losses, Results, trained
from experiments.studies import band
from fedsim.attacks.attack import ExampleDraws, Victim
from fedsim.core.streams import Streams
from fedsim.nets.network import PlainNetwork
from fedsim.plots.style import BRIGHT, INK, plain, save
from fedsim.running.sweep import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
"""Of Fashion-MNIST."""


def draw_losses(losses: Losses, path: Path) -> None:
    """The loss under attack over the rounds, a panel a distance; mean, and a band of one deviation over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    axes = figure.subplots(1, len(DELTAS), sharey=True)
    for number, (axis, delta) in enumerate(zip(axes, DELTAS, strict=True)):
        for place, arm in enumerate(ARMS):
            curves = losses[arm][number]
            band(axis, place, METHODS[arm].label, np.arange(1.0, curves.shape[1] + 1.0), curves)
        axis.axhline(SMALL_LOSS, color=INK, linewidth=0.8, linestyle=":")
        axis.set_yscale("log")
        axis.set_xlabel("round", color=INK)
        axis.set_title(f"points at least {delta:g} apart", color=INK, loc="left", fontsize=10)
        plain(axis, grid="both")
    axes[0].set_ylabel("training loss under PGD-10", color=INK)
    _legend(figure, axes[0])
    save(figure, path)


def draw_accuracies(results: Results, path: Path) -> None:
    """Clean and PGD-20 accuracy over the rounds; mean, and a band of one deviation over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    clean, attacked = figure.subplots(1, 2, sharey=True)
    for place, (name, one) in enumerate(results.items()):
        band(clean, place, METHODS[name].label, np.arange(1.0, one.clean.shape[1] + 1.0), one.clean)
        band(attacked, place, METHODS[name].label, one.rounds, one.pgd)
    for axis, title in ((clean, "clean"), (attacked, "under PGD-20, ε = 0.1")):
        axis.set_title(title, color=INK, loc="left", fontsize=10)
        axis.set_xlabel("round", color=INK)
        axis.set_xlim(0.0, len(next(iter(results.values())).clean[0]) + 0.5)
        plain(axis, grid="both")
    clean.set_ylabel("test accuracy", color=INK)
    _legend(figure, clean)
    save(figure, path)


def _legend(figure: Any, axis: Axes) -> None:
    lines, labels = axis.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK)


@dataclass(frozen=True, eq=False)
class Attacked:
    """n images and what a model makes of them.

    labels: their classes, [n]. before, after: [n, height, width]. said_before, said_after: what it takes them for, [n].
    """

    labels: NDArray[np.int64]
    before: NDArray[Any]
    after: NDArray[Any]
    said_before: NDArray[np.int64]
    said_after: NDArray[np.int64]


def attacked_images(point: Point) -> Attacked:
    """The first test image of each class, and what the last attack of a run's evaluation does to the run's model."""
    problem, params = trained(point)
    attack = point.experiment.evaluation.made["attacks"][-1]
    numbers = torch.stack([(problem.y_test == label).nonzero()[0, 0] for label in range(len(CLASSES))])
    x, y = problem.x_test[numbers].unsqueeze(0), problem.y_test[numbers].unsqueeze(0)
    network = PlainNetwork(problem.module(params), problem.model.layout, problem.model.loss)
    draws = ExampleDraws(Streams(point.experiment.seed), numbers)
    victim = Victim(network, problem.model.layout.stack(params), problem.model.loss, draws)
    after = attack.perturb(victim, x, y)
    before, then = (victim.outputs(images)[0].argmax(dim=1).cpu().numpy() for images in (x, after))
    return Attacked(y[0].cpu().numpy(), x[0, :, 0].cpu().numpy(), after[0, :, 0].cpu().numpy(), before, then)


def draw_images(found: Mapping[str, Attacked], epsilon: float, path: Path) -> None:
    """A column an image; below it, for each model by its name, the attacked image and what was added.

    Above an image is what the model takes it for, red where that is wrong; what was added is on a scale of +-epsilon.
    """
    from matplotlib.figure import Figure

    first = next(iter(found.values()))
    figure = Figure(figsize=(1.6 + 1.0 * len(first.labels), 0.3 + 1.2 * (1 + 2 * len(found))), layout="constrained")
    grid = figure.subplots(1 + 2 * len(found), len(first.labels), squeeze=False)
    for column, label in enumerate(first.labels):
        _image(grid[0, column], first.before[column], CLASSES[label], INK)
    grid[0, 0].set_ylabel("test image")
    added: Any = None
    for number, (name, one) in enumerate(found.items()):
        upper, lower = grid[1 + 2 * number], grid[2 + 2 * number]
        for column, (label, said) in enumerate(zip(one.labels, one.said_after, strict=True)):
            _image(upper[column], one.after[column], CLASSES[said], BRIGHT[2] if said == label else BRIGHT[1])
            _bare(lower[column])
            change = one.after[column] - one.before[column]
            added = lower[column].imshow(change, cmap="RdBu_r", vmin=-epsilon, vmax=epsilon, interpolation="nearest")
        right = [int((said == one.labels).sum()) for said in (one.said_before, one.said_after)]
        upper[0].set_ylabel(f"{name}\n{right[0]} of {len(one.labels)} right,\nattacked {right[1]}")
        lower[0].set_ylabel("what was\nadded")
    for axes in grid:
        axes[0].yaxis.label.set(rotation=0, ha="right", va="center", fontsize=9, color=INK)
    bar = figure.colorbar(added, ax=list(grid[:, -1]), shrink=0.4, ticks=[-epsilon, 0, epsilon])
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    save(figure, path)


def _image(axis: Axes, image: NDArray[Any], title: str, colour: str) -> None:
    _bare(axis)
    axis.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axis.set_title(title, fontsize=9, color=colour, pad=2)


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)
