"""Pictures of methods: the figure of the study whose experiment uses one, or the curves of a short run.

Runs are kept from build to build, as long as no line of code has changed and no option of the experiment.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import fedsim
from fedsim.core.blame import ROOT

ROUNDS = 30
"""How long the runs are: some tenths of a second each."""
CODE = ("fedsim", "strategies", "clients")
SHORT = "digits_"
"""How experiments are called that are run."""
FIGURES = {
    "curriculum": "noniid.png",
    "fal": "practice.png",
    "fedfix": "figure.png",
    "fzoos": "figure.png",
    "one_byte": "digits.png",
}
"""The figure of each study, a folder of `experiments/`."""


@dataclass(frozen=True)
class Picture:
    """A picture of an experiment. file: where it is; caption: what it shows."""

    file: Path
    caption: str


def picture(experiment: Path, kept: Path) -> Picture | None:
    """That of an experiment file, if there is one. kept: the folder in which pictures of runs stay."""
    study = experiment.parent.name
    if study in FIGURES:
        return Picture(ROOT / experiment.parent / FIGURES[study], f"The figure of `{experiment.parent}/`")
    if experiment.name.startswith(SHORT):
        return Picture(_curves(experiment, kept), f"The first {ROUNDS} rounds of `{experiment}`")
    return None


def _curves(experiment: Path, kept: Path) -> Path:
    """The curves of a short run of an experiment."""
    text = (ROOT / experiment).read_bytes()
    curves = kept / f"{experiment.stem}-{blake2b(text + _code(), digest_size=8).hexdigest()}.png"
    if not curves.exists():
        kept.mkdir(parents=True, exist_ok=True)
        for earlier in kept.glob(f"{experiment.stem}-*.png"):
            earlier.unlink()
        with TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            fedsim.run(replace(fedsim.load(ROOT / experiment), rounds=ROUNDS), out=run)
            shutil.copyfile(run / "curves.png", curves)
    return curves


@cache
def _code() -> bytes:
    """What the code is: a digest of all of its files."""
    digest = blake2b()
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.digest()
