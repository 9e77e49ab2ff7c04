"""An attacked image: before, what was added, after, and what every classifier says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.plots.style import BRIGHT, INK, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ADVERSARIAL = "adversarial.png"
"""The picture of a run."""
ROWS = 20
"""At most so many classifiers have a row."""
ABOVE, BELOW = BRIGHT[0], BRIGHT[1]


@dataclass(frozen=True, eq=False)
class Verdict:
    """What N classifiers say: their margins [N], and the classes that they predict [N]."""

    margins: NDArray[np.float64]
    predictions: NDArray[np.int64]

    @property
    def below(self) -> int:
        """How many margins are below 0."""
        return int((self.margins < 0).sum())


@dataclass(frozen=True, eq=False)
class Outcome:
    """An image before and after an attack: [channels, height, width] in [0, 1], and what classifiers say of each.

    epsilon: the largest perturbation allowed. label: the image's class. target: the class that was aimed at, or None.
    """

    before: NDArray[Any]
    after: NDArray[Any]
    epsilon: float
    label: int
    target: int | None
    said_before: Verdict
    said_after: Verdict


def adversarial(outcome: Outcome, path: Path) -> None:
    """Draw the three images, and a row a classifier with its margin before and after, into `path`.

    The perturbation is the difference of the images, the mean over the channels, on a scale from -epsilon to epsilon.
    Of more than `ROWS` classifiers so many are shown, evenly spaced, and the picture says so. StorageError: it cannot
    be written.
    """
    from matplotlib.figure import Figure

    count = len(outcome.said_before.margins)
    shown = np.unique(np.linspace(0, count - 1, min(count, ROWS)).round().astype(np.int64))
    figure = Figure(figsize=(8.2, 3.6 + 0.26 * len(shown)), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(2.7, 0.9 + 0.26 * len(shown)))
    upper, lower = halves
    before, between, after = upper.subplots(1, 3)
    for axis, name, image in ((before, "before", outcome.before), (after, "after", outcome.after)):
        _image(axis, image)
        axis.set_title(name, fontsize=10, color=INK)
    between.set_title("perturbation", fontsize=10, color=INK)
    between.set_axis_off()
    added = between.imshow(
        (outcome.after - outcome.before).mean(axis=0),
        cmap="RdBu_r",
        vmin=-outcome.epsilon,
        vmax=outcome.epsilon,
        interpolation="nearest",
    )
    bar = upper.colorbar(added, ax=between, shrink=0.8, ticks=[-outcome.epsilon, 0, outcome.epsilon])
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    _margins(lower.subplots(), outcome, shown)
    aim = "any other" if outcome.target is None else f"class {outcome.target}"
    first, last = outcome.said_before, outcome.said_after
    figure.suptitle(
        f"an image of class {outcome.label}, to be taken for {aim}\n"
        f"F, the mean margin: {first.margins.mean():.2f} → {last.margins.mean():.2f}     "
        f"classifiers below 0: {first.below} → {last.below} of {count}",
        fontsize=11,
        color=INK,
    )
    save(figure, path)


def _image(axis: Axes, image: NDArray[Any]) -> None:
    """Show an image without a frame: in grey, or in colour where it has three channels."""
    shown = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0)
    axis.imshow(shown, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axis.set_axis_off()


def _margins(axis: Axes, outcome: Outcome, shown: NDArray[np.int64]) -> None:
    """Draw a row a classifier: an arrow from the margin before to the margin after, and both predictions beside it."""
    before, after = outcome.said_before, outcome.said_after
    rows = np.arange(len(shown))
    colours = [BELOW if margin < 0 else ABOVE for margin in after.margins[shown]]
    axis.axvline(0.0, color=INK, linewidth=0.8)
    axis.hlines(rows, before.margins[shown], after.margins[shown], color=colours, linewidth=1.6, alpha=0.6)
    axis.plot(before.margins[shown], rows, "o", color="white", markeredgecolor=INK, markersize=5.5, label="before")
    axis.scatter(after.margins[shown], rows, color=colours, s=34, zorder=3)
    axis.plot([], [], "o", color=ABOVE, markersize=6, label="after, above 0")
    axis.plot([], [], "o", color=BELOW, markersize=6, label="after, below 0")
    axis.set_yticks(rows, [str(number) for number in shown])
    axis.set_ylim(len(shown) - 0.4, -0.6)
    plain(axis, grid="x")
    says = axis.secondary_yaxis("right")
    pairs = zip(before.predictions[shown], after.predictions[shown], strict=True)
    says.set_yticks(rows, [f"{first} → {then}" for first, then in pairs])
    says.tick_params(length=0, labelsize=9, colors=INK)
    says.spines["right"].set_visible(False)
    says.set_ylabel("predicted class", fontsize=9, color=INK)
    named = "classifier" if len(shown) == len(before.margins) else f"classifier ({len(shown)} of {len(before.margins)})"
    axis.set_ylabel(named, fontsize=9, color=INK)
    axis.set_xlabel("margin (below 0: fooled, or wrong from the start)", fontsize=9, color=INK)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9, labelcolor=INK)
