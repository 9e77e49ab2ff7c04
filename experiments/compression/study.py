"""Runs of FedAvg on digits whose clients' replies are compressed, and what is claimed about accuracy and bytes.

All 100 clients reply in each of 100 rounds, at the learning rate of `digits_fedavg.toml`, which is not tuned for any.
Three seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import fedsim
from experiments.studies import Numbers, cell

FOLDER = Path(__file__).parent
FILE, PICTURE = FOLDER / "compression.toml", FOLDER / "compression.png"
SEEDS = range(3)
TOP = "{kind='top_k', ratio=0.01}"
WAYS: Mapping[str, str] = {
    "plain": "",
    "fp16": "{kind='half'}",
    "8-bit blocks": "{kind='integer'}",
    "natural": "{kind='natural'}",
    "QSGD, 4 levels": "{kind='qsgd', levels=4, code='elias'}",
    "TernGrad": "{kind='terngrad', per='layer'}",
    "sign": "{kind='sign', per='layer'}",
    "EF14, sign": "{kind='ef14'}, {kind='sign', per='layer'}",
    "EF14, rank 1": "{kind='ef14'}, {kind='low_rank', rank=1}",
    "random 1 %": "{kind='random_k', ratio=0.01}",
    "EF14, random 1 %": "{kind='ef14'}, {kind='random_k', ratio=0.01, scaled=false}",
    "top 1 %": TOP,
    "EF14, top 1 %": "{kind='ef14'}, " + TOP,
    "EF21, top 1 %": "{kind='ef21'}, " + TOP,
    "EControl, top 1 %": "{kind='econtrol', eta=0.1}, " + TOP,
    "EF14, top 1 % by Rice, 8 bits": "{kind='ef14'}, {kind='top_k', ratio=0.01, index='rice'}, {kind='integer'}",
}
"""What replies go through."""
CLAIM = (
    "the largest 1 % of each reply with EF14 end at most a point below plain replies, at most 1/50 of whose bytes they "
    "take; without feedback they end more than a point below, mean over seeds 0 to 2"
)


@dataclass(frozen=True)
class Seen:
    """What is seen of a run after each round: test accuracy, and all bytes of replies so far, [R] each."""

    accuracy: Numbers
    nbytes: Numbers


Results = Mapping[str, list[Seen]]
"""Of the seeds, by what replies go through."""


def seen(way: str, seed: int) -> Seen:
    """Run one of the ways."""
    rows = list[tuple[float, float]]()

    def look(now: fedsim.Round) -> bool:
        rows.append((now.row["test_accuracy"], now.row["bytes_up"]))
        return False

    fedsim.run(fedsim.load(FILE, overrides=[f"seed={seed}", f"transforms=[{WAYS[way]}]"]), callbacks=[look], save=False)
    accuracy, nbytes = np.array(rows).T
    return Seen(accuracy, nbytes.cumsum())


def measure() -> Results:
    """Run everything, which takes about five minutes."""
    return {way: [seen(way, seed) for seed in SEEDS] for way in WAYS}


def judge(results: Results) -> tuple[str, bool]:
    """The numbers in words, and whether they bear the claim out."""
    asked = ("plain", "EF14, top 1 %", "top 1 %")
    ends = {way: np.array([one.accuracy[-1] for one in results[way]]) for way in asked}
    plain, owing, lossy = (float(ends[way].mean()) for way in asked)
    share = float(results[asked[1]][0].nbytes[-1] / results["plain"][0].nbytes[-1])
    words = "; ".join(f"{way} {cell(found, 3)}" for way, found in ends.items())
    held = owing >= plain - 0.01 and share <= 1 / 50 and lossy < plain - 0.01
    return f"{words}; at 1/{1 / share:.0f} of the bytes", held


def draw(results: Results, path: Path) -> None:
    """Test accuracy against bytes of replies, the mean over seeds."""
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for place, (way, found) in enumerate(results.items()):
        nbytes, accuracy = (np.mean([getattr(one, name) for one in found], axis=0) for name in ("nbytes", "accuracy"))
        style = "--" if way.startswith("E") else "-"
        axes.plot(nbytes / 1e6, accuracy, style, color=plt.get_cmap("tab20")(place), label=way)
    axes.set(xscale="log", xlabel="megabytes of replies", ylabel="test accuracy", ylim=(0.5, 1.0))
    axes.legend(fontsize=8, ncols=2, loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def rows(results: Results) -> list[str]:
    """The rows of the page's table: what a reply takes, and accuracies after 10, 25 and 100 rounds."""
    plain, lines = results["plain"][0].nbytes[-1], list[str]()
    for way, found in results.items():
        each = np.mean([one.nbytes[-1] for one in found]) / len(found[0].nbytes) / 100
        after = [cell(np.array([one.accuracy[place] for one in found]), 3) for place in (9, 24, 99)]
        share = np.mean([plain / one.nbytes[-1] for one in found])
        lines.append(" | ".join(["", way, f"{each:,.0f}", f"{share:.1f}", *after, ""]).strip())
    return lines


if __name__ == "__main__":
    measured = measure()
    draw(measured, PICTURE)
    print("\n".join([*rows(measured), *map(str, judge(measured))]))
