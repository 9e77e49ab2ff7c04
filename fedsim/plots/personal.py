"""What clients' own models come to: against the one for all, and by what each client has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.plots.style import BRIGHT, INK, grid_of, legend_below, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERSONAL = "personal.png"
"""The picture of a run."""
ALONG = {"train_examples": "training examples", "label_distance": "distance from the mean label distribution"}
"""Columns against which clients are drawn, and what the axes are called."""
DOTS = 2000
"""At most so many clients have dots."""
BINS = 8
"""The line of means goes through so many bins of equally many clients."""
FEW = 10
"""Where a bin would have fewer clients there is no such line."""
WIDE = 100.0
"""Beyond this ratio of the largest to the least an axis of losses is logarithmic."""

Columns = Mapping[str, Sequence[Any]]
"""The columns of clients.csv by name, a value a client; None or NaN where it has none."""
Line = NDArray[np.float64]
Chosen = NDArray[np.int64]


def personal(columns: Columns, path: Path | BytesIO) -> bool:
    """Draw what the clients' own models come to, a dot a client, into `path`.

    Where there is a global model, too: the one against the other, and the gain against the number of training examples
    and the distance of the client's labels from those of all. Where there is none, what the own ones come to against
    these. Where clients are in clusters: who is in which, in the colours of the dots. It is about accuracies, or losses
    where there are none. A line goes through the means of bins of equally many clients. Of more than `DOTS` clients so
    many have dots, evenly spaced, and the picture says so. Clients without a number are left out. Returns False, and
    draws nothing, where nobody has one.
    """
    own = _Own(columns)
    if not own.many:
        return False
    along = [name for name in ALONG if name in columns]
    figure, axes = grid_of((own.gain is not None) + len(along) + (own.cluster is not None))
    panels, keys = iter(axes), own.keys(axes[0])
    if own.gain is not None:
        _against(next(panels), own)
    for name in along:
        keys |= _by(next(panels), own, name)
    if own.cluster is not None:
        _clusters(next(panels), own, own.cluster)
    figure.suptitle(own.heading, x=0.01, ha="left", fontsize=11, color=INK)
    if keys:
        legend_below(figure, keys, None)
    save(figure, path)
    return True


def gain_of(columns: Columns) -> Line | None:
    """How much better each client's own model is than the global one, [N]; None: there are not both.

    The difference of their accuracies, or of the losses where there are none; above 0 the own one is better.
    """
    kind, sign = ("accuracy", 1.0) if "personal_accuracy" in columns else ("loss", -1.0)
    if kind not in columns or f"personal_{kind}" not in columns:
        return None
    return sign * (_numbers(columns[f"personal_{kind}"]) - _numbers(columns[kind]))


@dataclass(frozen=True, eq=False)
class _Own:
    """Clients with own models: those m that have a number, in the order of the columns."""

    columns: Columns

    @cached_property
    def kind(self) -> str:
        """What the models are judged by."""
        return "accuracy" if "personal_accuracy" in self.columns else "loss"

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """Who has a number, [N]."""
        gain = gain_of(self.columns)
        return np.isfinite(_numbers(self.columns[f"personal_{self.kind}"]) if gain is None else gain)

    @property
    def many(self) -> int:
        """How many they are, m."""
        return int(self.kept.sum())

    @cached_property
    def gain(self) -> Line | None:
        """See `gain_of`, [m]."""
        found = gain_of(self.columns)
        return None if found is None else found[self.kept]

    @cached_property
    def cluster(self) -> Chosen | None:
        """Where clients are in clusters, in which, [m]."""
        return self["cluster"].astype(np.int64) if "cluster" in self.columns else None

    @cached_property
    def never(self) -> NDArray[np.bool_]:
        """Who has not taken part, [m]."""
        return np.equal(self["participation"], 0)

    @cached_property
    def shown(self) -> Chosen:
        """Who has a dot, at most `DOTS` of the m."""
        return np.unique(np.linspace(0, self.many - 1, min(self.many, DOTS)).round().astype(np.int64))

    @property
    def heading(self) -> str:
        """Whose models they are, and how many are better than the global one."""
        said = f"Own models of {self.many:,} clients" if self.many > 1 else "Own model of a client"
        if self.gain is not None:
            better, worse = int((self.gain > 0).sum()), int((self.gain < 0).sum())
            said += (
                f": {better:,} better than the global model, {self.many - better - worse:,} as good, {worse:,} worse"
            )
        return said if self.many <= DOTS else f"{said}; dots are {DOTS:,} of them, evenly spaced by id"

    @cached_property
    def colours(self) -> NDArray[np.str_]:
        """The colours of the dots, [m]: those of the clusters, if there are any."""
        colours = np.array(BRIGHT)
        return colours[self.never.astype(int)] if self.cluster is None else colours[self.cluster % len(colours)]

    def __getitem__(self, name: str) -> Line:
        """A column, [m]."""
        return _numbers(self.columns[name])[self.kept]

    def dots(self, axis: Axes, x: Line, y: Line) -> None:
        """Draw a dot a client, the fainter the more there are, and a ring for one that has not taken part."""
        size, alpha = (30, 0.75) if len(self.shown) <= 100 else (14, max(0.25, 0.75 - 0.0005 * len(self.shown)))
        never = self.never[self.shown]
        took, rings = self.shown[~never], self.shown[never]
        axis.scatter(x[took], y[took], s=size, color=self.colours[took], alpha=alpha, linewidths=0)
        axis.scatter(x[rings], y[rings], s=size, facecolors="none", edgecolors=[*self.colours[rings]], linewidths=1.0)

    def keys(self, axis: Axes) -> dict[str, Any]:
        """Of the legend what dots and rings are, where there are both."""
        if not self.never.any():
            return {}
        dot, ring = BRIGHT[:2] if self.cluster is None else (INK, INK)
        return {
            "has taken part": axis.scatter([], [], s=30, color=dot, linewidths=0),
            "has not taken part": axis.scatter([], [], s=30, facecolors="none", edgecolors=ring),
        }


def _numbers(column: Sequence[Any]) -> Line:
    return np.asarray(column, dtype=np.float64)


def _against(axis: Axes, own: _Own) -> None:
    """Draw each client's own model against the global one, and the line on which they are as good."""
    x, y = own[own.kind], own[f"personal_{own.kind}"]
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    if own.kind == "loss" and low > 0 and high > WIDE * low:
        axis.set(xscale="log", yscale="log")
        low, high = low / 1.3, high * 1.3
    else:
        room = 0.04 * (high - low) or 0.05
        low, high = low - room, high + room
    axis.plot([low, high], [low, high], color="#999999", linewidth=0.8, zorder=1)
    own.dots(axis, x, y)
    axis.set(xlim=(low, high), ylim=(low, high))
    axis.set_xlabel(f"{own.kind} of the global model", color=INK)
    axis.set_ylabel(f"{own.kind} of the own model", color=INK)
    plain(axis, grid="both")


def _by(axis: Axes, own: _Own, name: str) -> dict[str, Any]:
    """Draw the gain, or what own models come to, against a column; returns the line of means by its label."""
    x, y = own[name], own[f"personal_{own.kind}"] if own.gain is None else own.gain
    own.dots(axis, x, y)
    drawn = {}
    if len(x) >= BINS * FEW:
        bins = np.searchsorted(np.sort(x), x) * BINS // len(x)  # who has the same is in the same
        means = np.array([(x[bins == one].mean(), y[bins == one].mean()) for one in np.unique(bins)]).T
        (line,) = axis.plot(*means, color=INK, linewidth=1.4, marker="o", markersize=3.5)
        drawn["mean of an eighth of the clients"] = line
    if name == "train_examples":
        _counts(axis, x)
    axis.set_xlabel(ALONG[name], color=INK)
    if own.gain is None:
        axis.set_ylabel(f"{own.kind} of the own model", color=INK)
    else:
        axis.axhline(0.0, color="#999999", linewidth=0.8, zorder=1)
        what = "accuracy gained" if own.kind == "accuracy" else "loss saved"
        axis.set_ylabel(f"{what} by the own model", color=INK, fontsize=9)
    plain(axis, grid="both")
    return drawn


def _counts(axis: Axes, x: Line) -> None:
    """Divide a horizontal axis of counts logarithmically, into whole numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    span = x.max() / x.min()
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 1e2 else (1, 3) if span < 1e4 else (1,)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlim(x.min() / 1.3, x.max() * 1.3)


def _clusters(axis: Axes, own: _Own, cluster: Chosen) -> None:
    """Draw who is in which cluster, and how many are."""
    from matplotlib.ticker import MaxNLocator

    found, places, sizes = np.unique(cluster, return_inverse=True, return_counts=True)
    own.dots(axis, own["client"], places.astype(np.float64))
    axis.set_yticks(np.arange(len(found)), [f"{one} ({size:,})" for one, size in zip(found, sizes, strict=True)])
    axis.set_ylim(len(found) - 0.4, -0.6)
    axis.set_ylabel("cluster (clients in it)", color=INK)
    axis.set_xlabel("client", color=INK)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, steps=(1, 2, 5, 10)))
    plain(axis, grid="both")
