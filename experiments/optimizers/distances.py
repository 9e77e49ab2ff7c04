"""DoG's start value: fresh in each round or kept by each client, and whether an average of a round is sent.

The digits, 60 rounds (digits.toml), seeds 0 to 4, of which each has another first model, another deal and other
batches. Nothing is chosen: all starts are told of. A round has about 18 steps, a client is in one of ten. The authors'
start is 1e-6, ours 0.01. 359 test examples: one is 0.0028.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.optimizers import HERE
from experiments.parts import NEAR, Claim, Part, accuracies, carry_out
from experiments.studies import Numbers, band, cell
from fedsim.plots.style import INK, plain, save
from fedsim.running.sweep import Outcome, expand

STARTS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 0.3, 1.0)
SEEDS = range(5)
SCHEMES = {
    "fresh": "distance fresh in each round",
    "kept": "distance kept by each client",
    "fresh_average": "fresh, the average is sent",
    "kept_average": "kept, the average is sent",
}
"""What differs beside the start, and what it is called."""
Results = Mapping[str, Numbers]
"""By scheme: test accuracies after the last round [starts, seeds]; where a run had diverged it is 0."""


def rule(scheme: str, start: float) -> str:
    """The optimizer's table."""
    distance, _, average = scheme.partition("_")
    whose = "client" if distance == "kept" else "round"
    return f"{{ kind = 'dog', reps_rel = {start:g}, distance = '{whose}', average = {str(bool(average)).lower()} }}"


def measure(
    out: Path,
    *,
    rounds: int | None = None,
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
) -> Results:
    """Run what is not finished in `out`, one run folder a seed, and read it all. FedsimError: a run failed.

    rounds: of every run, instead of the file's.
    """
    settings = () if rounds is None else (f"rounds={rounds}",)
    points = [
        expand(
            [HERE / "digits.toml"],
            out=out / scheme / f"{start:g}",
            grid={},
            seeds=SEEDS,
            overrides=(f"client.optimizer={rule(scheme, start)}", *settings),
        )
        for scheme in SCHEMES
        for start in STARTS
    ]
    carry_out(points, workers, on_done)
    ended = np.array([accuracies(own) for own in points])
    return dict(zip(SCHEMES, ended.reshape(len(SCHEMES), len(STARTS), len(SEEDS)), strict=True))


def table(results: Results) -> Table:
    """A row a start."""
    laid = Table(show_edge=False, caption="test accuracy after 60 rounds; ±: one sample standard deviation over seeds")
    for heading in ("start", *(SCHEMES[scheme] for scheme in results)):
        laid.add_column(heading, justify="right")
    for place, start in enumerate(STARTS):
        laid.add_row(f"{start:g}", *(cell(found[place], 3) for found in results.values()))
    return laid


def draw(results: Results, path: Path) -> None:
    """Accuracy against the start: mean, and a band of one deviation over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axis = figure.subplots()
    for place, (scheme, found) in enumerate(results.items()):
        band(axis, place, SCHEMES[scheme], np.array(STARTS), found.T)
    axis.set_xscale("log")
    axis.set_xlabel("first distance, in units of 1 + |model|", color=INK)
    axis.set_ylabel("test accuracy after 60 rounds", color=INK)
    axis.set_ylim(0.0, 1.0)
    axis.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower center")
    plain(axis, grid="both")
    save(figure, path)


def at(results: Results, scheme: str, start: float) -> float:
    """The mean accuracy over the seeds."""
    return float(results[scheme][STARTS.index(start)].mean())


def near(results: Results, scheme: str) -> Sequence[float]:
    """The starts within `NEAR` of the scheme's best mean."""
    means = results[scheme].mean(axis=1)
    return [start for start, mean in zip(STARTS, means, strict=True) if mean >= means.max() - NEAR]


def _published(results: Results) -> tuple[str, bool]:
    fresh, kept = (at(results, scheme, 1e-6) for scheme in ("fresh", "kept"))
    return f"fresh {fresh:.3f}, kept {kept:.3f}", fresh <= 0.3 and kept >= 0.85


def _ours(results: Results) -> tuple[str, bool]:
    best = max(at(results, "fresh", start) for start in STARTS)
    own = at(results, "fresh", 1e-2)
    return f"{own:.3f} of at most {best:.3f}", own >= best - NEAR


def _collapse(results: Results) -> tuple[str, bool]:
    found = {start: at(results, "fresh", start) for start in (0.1, 0.3, 1.0)}
    said = ", ".join(f"{start:g}: {mean:.3f}" for start, mean in found.items())
    return said, found[0.1] >= 0.9 and max(found[0.3], found[1.0]) <= 0.5


def _broader(results: Results) -> tuple[str, bool]:
    fresh, kept = ([near(results, scheme)[place] for place in (0, -1)] for scheme in ("fresh", "kept"))
    wide = [np.log10(high / low) for low, high in (fresh, kept)]
    said = [f"{low:g} to {high:g}" for low, high in (fresh, kept)]
    return f"fresh {said[0]}, kept {said[1]}", bool(wide[1] >= 2.0 * wide[0])


def _averages(results: Results) -> tuple[str, bool]:
    starts, gains = (1e-3, 1e-2, 1e-1), []
    for scheme in ("fresh", "kept"):
        gains += [at(results, f"{scheme}_average", start) - at(results, scheme, start) for start in starts]
    said = ", ".join(f"{gain:+.3f}" for gain in gains)
    return f"{said} (fresh, then kept, from 0.001, 0.01 and 0.1)", min(gains) > 0.0


PART = Part(
    HERE,
    "distances",
    measure,
    table,
    draw,
    (
        Claim(
            "published",
            "DoG on the digits, 60 rounds: from the published start 1e-6 it ends at 0.3 at most, and at 0.85 at least"
            " where each client keeps its distance",
            _published,
        ),
        Claim("ours", "DoG, fresh in each round, from our start 0.01: within 2 points of its best start", _ours),
        Claim("collapse", "and from 0.1 at 0.9 at least, from 0.3 and from 1 at 0.5 at most", _collapse),
        Claim(
            "broader",
            "DoG's starts within 2 points of the best span at least twice as many decades where distances are kept",
            _broader,
        ),
        Claim("averages", "DoG's average of a round is better than its last point, from 0.001 to 0.1", _averages),
    ),
)
