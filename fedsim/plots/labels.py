"""Who has which labels: a bar a client, or for many clients a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.plots.style import BRIGHT, INK, MUTED, plain, save, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTITION = "partition.png"
"""The picture of a run."""
BARS = 40
"""Up to so many clients get a bar each."""
COLUMNS = 500
"""At most so many clients get a column of the heat map."""
BINS = 5
"""Quantile bins that stand in for classes when the targets are real numbers."""

Line = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Dealt:
    """Examples as they are dealt to clients.

    labels: [n], numbers of the `classes`, or real targets where there are no classes, which are shown in quantile bins.
    Client c has the examples order[offset[c]:offset[c + 1]]; offset: [C + 1]. clients: what they are called; None: by
    their numbers. counted: what has a label each: `examples`, or their `places` or `tags`, which stand in for them.
    """

    labels: NDArray[Any]
    offset: NDArray[Any]
    order: NDArray[Any]
    classes: Sequence[str] = ()
    clients: Sequence[str] | None = None
    counted: Literal["examples", "places", "tags"] = "examples"


def label_distribution(dealt: Dealt, path: Path) -> None:
    """Draw which labels each client has, and how many examples, into `path`.

    Up to `BARS` clients and ten classes are bars; more are a heat map, of at most `COLUMNS` clients evenly spaced by
    id. StorageError: the picture cannot be written.
    """
    offset, order, labels = dealt.offset, dealt.order, dealt.labels
    clients = len(offset) - 1
    shown = np.unique(np.linspace(0, clients - 1, min(clients, COLUMNS)).round().astype(np.int64))
    if dealt.classes:
        names, classes = [short(str(name)) for name in dealt.classes], np.asarray(labels)
    else:
        names, classes = _bins(np.asarray(labels, dtype=np.float64))
    counts = np.zeros((len(shown), len(names)))
    for row, client in enumerate(shown):
        held = classes[order[offset[client] : offset[client + 1]]].astype(np.int64)
        counts[row] = np.bincount(held, minlength=len(names))
    kind = "tag" if dealt.counted == "tags" else "class" if dealt.classes else "target"
    if clients <= BARS and len(names) <= len(MUTED):
        figure = _bars(counts, names, kind, dealt)
    else:
        figure = _heat_map(counts, names, kind, dealt)
    save(figure, path)


def _bars(counts: Line, names: list[str], kind: str, dealt: Dealt) -> Figure:
    """Draw horizontal bars, one a client; counts: [clients, classes]."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    (clients, classes), called = counts.shape, dealt.clients
    figure = Figure(figsize=(7.5, 1.6 + 0.2 * max(clients, 6)), layout="constrained")
    axis = figure.subplots()
    left = np.zeros(clients)
    for label in range(classes):
        axis.barh(
            np.arange(clients),
            counts[:, label],
            left=left,
            height=0.8,
            color=MUTED[label],
            edgecolor="white",
            linewidth=0.4,
            label=names[label],
        )
        left += counts[:, label]
    axis.set_ylim(clients - 0.4, -0.6)
    axis.set_xlabel(dealt.counted, color=INK)
    axis.set_ylabel("client", color=INK)
    if called is None:
        axis.yaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    else:
        axis.set_yticks(np.arange(clients), [short(name) for name in called])
    axis.set_title(f"Labels of {clients:,} clients", loc="left", fontsize=11, color=INK)
    plain(axis, grid="x")
    figure.legend(loc="outside right upper", title=kind, frameon=False, fontsize=9, title_fontsize=9, labelcolor=INK)
    return figure


def _heat_map(counts: Line, names: list[str], kind: str, dealt: Dealt) -> Figure:
    """Draw a column a client, its shares above and its size below; counts: [shown, classes].

    What the clients are called is shown of few.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    (shown, classes), clients, called = counts.shape, len(dealt.offset) - 1, dealt.clients
    sizes = counts.sum(axis=1)
    # A client without examples has no shares: it is grey.
    shares = np.full_like(counts, np.nan)
    np.divide(counts, sizes[:, None], out=shares, where=sizes[:, None] > 0)
    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    picture = above.imshow(
        shares.T,
        aspect="auto",
        interpolation="nearest",
        cmap=colormaps["Blues"].with_extremes(bad="#CCCCCC"),
        vmin=0.0,
        vmax=float(np.nanmax(shares, initial=0.0)) or 1.0,
        extent=(-0.5, clients - 0.5, classes - 0.5, -0.5),
    )
    figure.colorbar(picture, ax=above, label=f"share of the client's {dealt.counted}", pad=0.01).outline.set_visible(
        False
    )
    above.set_ylabel(kind, color=INK)
    if classes <= 12:
        above.set_yticks(np.arange(classes), names)
    else:
        above.yaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    title = f"Labels of {clients:,} clients"
    if shown < clients:
        title += f": a sample of {shown:,}, evenly spaced by id"
    above.set_title(title, loc="left", fontsize=11, color=INK)
    below.stairs(sizes, np.linspace(-0.5, clients - 0.5, shown + 1), fill=True, color=BRIGHT[0])
    below.set_ylim(bottom=0)
    below.set_ylabel(dealt.counted, color=INK)
    below.set_xlabel("client", color=INK)
    if called is not None and clients <= BARS:
        below.set_xticks(np.arange(clients), [short(name) for name in called], rotation=90)
    else:
        below.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
        below.xaxis.set_major_formatter("{x:,.0f}")
    plain(above, grid=None)
    plain(below, grid="y")
    return figure


def _bins(targets: Line) -> tuple[list[str], NDArray[np.int64]]:
    """Cut real targets into quantile bins: their names, and the bin of each target, [n]."""
    edges = np.unique(np.quantile(targets, np.arange(BINS + 1) / BINS))
    if len(edges) == 1:
        return [f"{edges[0]:.3g}"], np.zeros(len(targets), dtype=np.int64)
    names = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    return names, np.searchsorted(edges[1:-1], targets, side="right").astype(np.int64)
