"""One parameter for all layers of a network, or one for each as L-GreCo chooses: bytes at the same error.

Of a network whose layers differ a hundredfold in size, with EF14 before each compressor. Both have the same rates,
which are tuned for none; the sum over layers of what is left out is held to that of the one parameter for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from experiments.compression.participation import curve, sent, through
from experiments.parts import Claim, Part, accuracies, carry_out
from experiments.studies import Numbers, cell, picture
from fedsim.plots.style import BRIGHT, INK
from fedsim.running.sweep import Outcome, Point, expand

HERE = Path(__file__).parent
TOLD = range(3)
EF14 = "{kind='ef14'}"
ALIKE, NORMS, SQUARES = "one for all", "L-GreCo", "L-GreCo, squares"


@dataclass(frozen=True)
class Compressor:
    """A compressor, and parameters of it: of each those that a layer may have instead.

    text: its table, with a brace for the parameter.
    """

    label: str
    text: str
    values: Mapping[str, Sequence[str]]


def shares(*middle: float) -> dict[str, tuple[str, ...]]:
    """Shares of numbers, and from a quarter to four times as many."""
    return {f"{one:g}": tuple(f"{one * times:g}" for times in (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)) for one in middle}


COMPRESSORS = (
    Compressor("top_k", "kind='top_k', ratio={}", shares(0.003, 0.01, 0.03)),
    Compressor("low_rank", "kind='low_rank', rank={}", dict.fromkeys(("1", "2"), ("1", "2", "3", "4"))),
    Compressor(
        "qsgd", "kind='qsgd', per='layer', code='elias', contract=true, levels={}",
        dict.fromkeys(("4", "16"), ("2", "4", "8", "16", "32")),
    ),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Measured:
    """ends: test accuracies, [S]. each: bytes of one reply, mean over all. curves: rounds and accuracies, [2, T]."""

    ends: Numbers
    each: float
    curves: Sequence[Numbers]


Results = Mapping[tuple[str, str, str], Measured]
"""By compressor, parameter and way."""


def ways(compressor: Compressor, value: str) -> dict[str, str]:
    """The overrides of the ways."""
    own = compressor.text.format(value)
    chosen = f"kind='l_greco', candidates=[{', '.join(compressor.values[value])}], compressor={{{own}}}"
    alone = own if "low_rank" in own or "per=" in own else f"{own}, per='layer'"
    return {
        ALIKE: through(EF14, f"{{{alone}}}"),
        NORMS: through(EF14, f"{{{chosen}}}"),
        SQUARES: through(EF14, f"{{{chosen}, errors='squares'}}"),
    }


def measure(out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:
    """Run what is not finished in `out`, and read it all. FedsimError: a run failed."""
    points: dict[tuple[str, str, str], list[Point]] = {
        ("plain", "", ""): expand([HERE / "layers.toml"], out=out / "plain", seeds=TOLD)
    }
    for compressor in COMPRESSORS:
        for value in compressor.values:
            for number, (way, override) in enumerate(ways(compressor, value).items()):
                place = out / compressor.label / value / str(number)
                points[compressor.label, value, way] = expand(
                    [HERE / "layers.toml"], out=place, seeds=TOLD, overrides=[override]
                )
    carry_out(points.values(), workers, on_done)
    return {
        key: Measured(accuracies(own), sent(own), [curve(point) for point in own if accuracies([point])[0] > 0.0])
        for key, own in points.items()
    }


def pairs(results: Results, way: str = NORMS) -> list[tuple[str, Measured, Measured]]:
    """What is compared: a compressor and its parameter, one for all, and one for each layer."""
    return [
        (f"{label} {value}", own, results[label, value, way])
        for (label, value, known), own in results.items()
        if known == ALIKE
    ]


def table(results: Results) -> Table:
    """A row a compressor, parameter and way."""
    laid = Table(show_edge=False, caption=f"±: one sample standard deviation over seeds 0 to {len(TOLD) - 1}")
    for heading in ("compressor", "parameter", "layers"):
        laid.add_column(heading)
    for heading in ("bytes of a reply", "test accuracy"):
        laid.add_column(heading, justify="right")
    for (label, value, way), row in results.items():
        laid.add_row(label, value, way, f"{row.each:,.0f}", cell(row.ends, 3))
    return laid


def draw(results: Results, path: Path) -> None:
    """Test accuracy against bytes of a reply, a line a compressor and way."""
    with picture(path, "bytes of a reply", "test accuracy", size=(7.2, 4.2), log="x", letters=8) as axis:
        for number, compressor in enumerate(COMPRESSORS):
            for way, style in ((ALIKE, "-"), (NORMS, "--"), (SQUARES, ":")):
                found = [results[compressor.label, value, way] for value in compressor.values]
                where, height = [one.each for one in found], [one.ends.mean() for one in found]
                label = f"{compressor.label}, {way}"
                axis.plot(where, height, style, marker="o", markersize=4, color=BRIGHT[number], label=label)
        axis.axhline(results["plain", "", ""].ends.mean(), color=INK, linewidth=0.8)


def fewer(results: Results) -> tuple[str, bool]:
    """Whether a parameter for each layer takes fewer bytes at an accuracy that is at most a point lower."""
    words = [
        f"{label}: {own.each / alike.each:.2f} of the bytes, {100 * (own.ends - alike.ends).mean():+.1f} points"
        for label, alike, own in pairs(results)
    ]
    held = all(own.each < alike.each and (own.ends - alike.ends).mean() > -0.01 for _, alike, own in pairs(results))
    return "; ".join(words), held


def squares(results: Results) -> tuple[str, None]:
    """The same where squares are summed."""
    words = [
        f"{label}: {own.each / alike.each:.2f} of the bytes, {100 * (own.ends - alike.ends).mean():+.1f} points"
        for label, alike, own in pairs(results, SQUARES)
    ]
    return "; ".join(words), None


PART = Part(
    HERE,
    "layers",
    measure,
    table,
    draw,
    (
        Claim(
            "layers",
            "digits, an MLP of four layers, EF14: with a parameter for each layer by L-GreCo replies take fewer bytes "
            "than with one for all, and test accuracy is at most a point lower, for each compressor and parameter",
            fewer,
        ),
        Claim("layers_squares", "the same where the squares of what layers leave out are summed", squares),
    ),
)
