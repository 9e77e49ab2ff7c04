"""What the pictures share: colours, plain axes, steps that are easy to read, and the writing of the file.

The colours are those of Paul Tol's "bright" and "muted" sets, which people with colour blindness can tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

from fedsim.core.errors import InputError, one_line
from fedsim.core.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BRIGHT = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#7F7F7F")
MUTED = ["#332288", "#88CCEE", "#44AA99", "#117733", "#999933"]
MUTED += ["#DDCC77", "#CC6677", "#882255", "#AA4499", "#BBBBBB"]
STYLES = ("-", "--", ":", "-.")
INK = "#333333"
METADATA: Mapping[str, Any] = {"png": None, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""The formats of pictures, and what a file is not to say of itself: when it was written."""
LETTERS = 11
"""An inch takes so many of them, in the size of a legend."""
WIDE = 100.0
"""Beyond this ratio of the largest to the least an axis is logarithmic."""
NAMED = 24
"""Of the name of a client or class so many letters are shown."""


def plain(axis: Axes, *, grid: Literal["both", "x", "y"] | None) -> None:
    """Leave two sides of the frame, in grey, and a faint grid behind what is drawn."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#999999")
    axis.tick_params(colors=INK, labelsize=9)
    axis.set_axisbelow(True)
    if grid is not None:
        axis.grid(axis=grid, color="#E5E5E5", linewidth=0.6)


def grid_of(panels: int) -> tuple[Figure, list[Axes]]:
    """Make a figure of up to three panels a row."""
    from matplotlib.figure import Figure

    columns = min(panels, 3) if panels != 4 else 2
    rows = -(-panels // columns)
    figure = Figure(figsize=(0.6 + 4.2 * columns, 3.2 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.remove()
    return figure, axes[:panels]


def whole_step(span: float, steps: int) -> int:
    """Find the least of 1, 2, 5, 10, 20, 50, ... of which `steps` make up the span."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power * steps >= span:
                return digit * power
        power *= 10


def written(name: str) -> str:
    """Write a name of somebody else's as it is: matplotlib would set what stands between two $ as a formula."""
    return name.replace("$", r"\$")


def named(group: str, runs: int) -> str:
    """Write the name of a group with the number of its runs, one a seed."""
    return f"{written(group)} ({runs} seeds)" if runs > 1 else written(group)


def legend_below(figure: Figure, entries: Mapping[str, Any], title: str | None) -> None:
    """Set a legend below the panels: as many entries side by side as fit, up to three; the figure grows by its height.

    entries: what is drawn, by its label. A label that is wider than the figure is broken into lines.
    """
    labels = [fill(label, int(LETTERS * figure.get_figwidth())) for label in entries]
    for columns in (3, 2, 1):
        legend = figure.legend(
            list(entries.values()),
            labels,
            loc="outside lower center",
            ncols=min(columns, len(labels)),
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            title=title,
            title_fontsize=8,
        )
        extent = legend.get_window_extent()
        if extent.width <= figure.bbox.width or columns == 1:
            figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)
            return
        legend.remove()


def format_of(place: Path, option: str) -> str:
    """The format of a picture by its file's name: png, pdf or svg. InputError: it is none of these."""
    kind = place.suffix.lower().removeprefix(".")
    if kind not in METADATA:
        raise InputError(option, str(place), f"name a file that ends in {', '.join(f'.{one}' for one in METADATA)}")
    return kind


def save(figure: Figure, place: Path | BytesIO) -> None:
    """Write a figure into a file, in the format of its name, or into memory as PNG: the same bytes every time.

    StorageError: it cannot be written.
    """
    from matplotlib import rc_context

    drawn, kind = (BytesIO(), format_of(place, "path")) if isinstance(place, Path) else (place, "png")
    with rc_context({"svg.hashsalt": "fedsim"}):  # else the names of its parts are drawn by chance
        figure.savefig(drawn, format=kind, dpi=150, facecolor="white", metadata=METADATA[kind])
    if isinstance(place, Path):
        write_whole(place, drawn.getvalue())


def short(name: str) -> str:
    """The name of a client or class as it is drawn, or its beginning where there is no room for all of it."""
    line = one_line(name)
    return written(line if len(line) <= NAMED else f"{line[: NAMED - 3]}...")
