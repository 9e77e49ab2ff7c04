"""Free Spoken Digits: recordings of 0 to 9, a client being a speaker.

`fsdd/audio.npy.xz` has all samples end to end (int16, 8,000 a second); `fsdd/labels.npz` has `offset` (recording i is
`offset[i]` to `offset[i + 1]`), `digit`, `speaker`, `take`, and `speaker_names`. Source: Jackson et al., Free Spoken
Digit Dataset.
"""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import numpy as np

from fedsim.core.data_files import Array, DataFolder, damaged, read_arrays, reading, unpacked
from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, options
from fedsim.problems.datasets.base import Dataset, standardise

AUDIO, LABELS = "fsdd/audio.npy.xz", "fsdd/labels.npz"
WINDOW = 256
"""Samples of which a spectrum is taken, 32 ms; a spectrum has half as many frequencies."""
TEST_TAKES = 5
"""The first takes of each digit by each speaker, which are the customary test set."""


@options
class FSDD:
    """3,000 recordings of spoken digits by 6 speakers as pictures: time to the right, frequency downwards."""

    bands: PositiveInt = 32
    """Bands of frequencies, of equal width: rows of a picture. Up to 128."""
    frames: PositiveInt = 32
    """Moments of a recording, however long it is: columns of a picture."""
    standardize: bool = True
    """Shift and scale by the mean and deviation of the training pictures."""

    def __post_init__(self) -> None:
        if self.bands > WINDOW // 2:
            raise InputError("bands", self.bands, f"a spectrum has {WINDOW // 2} frequencies; take fewer")

    def load(self, folder: DataFolder) -> Dataset:
        """Return x float32 [n, 1, bands, frames], the logarithm of power less its mean in the recording."""
        audio_at, labels_at = folder.find(AUDIO), folder.find(LABELS)
        audio = _read_audio(audio_at)
        digit, speaker, take, offset, names = _read_labels(labels_at, len(audio))
        x = np.stack([self._picture(audio[begin:end]) for begin, end in pairwise(offset)])
        test = take < TEST_TAKES
        data = (x[~test], digit[~test], x[test], digit[test])
        told = {"features": standardise(data[0], data[2])} if self.standardize else {}
        return Dataset("fsdd", *data, 10, speaker[~test], speaker[test], told=told | {"owners": names})

    def _picture(self, samples: Array) -> Array:
        """The spectra of one recording: float32 [1, bands, frames]."""
        begins = np.linspace(0, len(samples) - WINDOW, self.frames).astype(np.int64)
        windows = samples[begins[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW)
        power = np.square(np.abs(np.fft.rfft(windows, axis=1)))[:, 1:]
        edges = np.linspace(0, WINDOW // 2, self.bands + 1).astype(np.int64)
        bands = np.add.reduceat(power, edges[:-1], axis=1) / np.diff(edges)
        loud = np.log1p(bands).T
        found: Array = (loud - loud.mean()).astype(np.float32)[None]
        return found


def _read_audio(path: Path) -> Array:
    with reading(path, "an xz-compressed NumPy array"):
        audio = np.load(io.BytesIO(unpacked(path, "an xz-compressed NumPy array")), allow_pickle=False)
    if audio.ndim != 1 or audio.dtype != np.int16:
        raise damaged(path, f"holds {audio.dtype} of shape {audio.shape}, not samples of 16 bits")
    found: Array = audio.astype(np.float64)
    return found


def _read_labels(path: Path, samples: int) -> tuple[Array, Array, Array, Array, list[str]]:
    """Digit, speaker and take of each recording, int64 [n], where each begins, int64 [n + 1], and the speakers."""
    archive = read_arrays(path, "the labels of spoken digits")
    missing = [key for key in ("digit", "speaker", "take", "offset", "speaker_names") if key not in archive]
    if missing:
        raise damaged(path, f"has no array {missing[0]}")
    digit, speaker, take, offset = (archive[key] for key in ("digit", "speaker", "take", "offset"))
    names = [str(name) for name in archive["speaker_names"].ravel()]
    for key, array in (("digit", digit), ("speaker", speaker), ("take", take), ("offset", offset)):
        if array.dtype.kind not in "iu" or array.shape != (len(digit) + (key == "offset"),) or not len(digit):
            raise damaged(path, f"holds {key} as {array.dtype} of shape {array.shape}")
    if digit.min() < 0 or digit.max() > 9 or not np.array_equal(np.unique(speaker), np.arange(len(names))):
        raise damaged(path, f"holds digits {digit.min()} .. {digit.max()} and {len(np.unique(speaker))} speakers")
    begins = offset.astype(np.int64)
    if begins[0] != 0 or begins[-1] != samples or np.diff(begins).min() < WINDOW:
        raise damaged(path, f"divides other audio than {samples} samples, or into less than {WINDOW} of them")
    trained = take >= TEST_TAKES
    if not np.isin(speaker, speaker[trained]).all():
        raise damaged(path, "has a speaker with test recordings alone")
    return digit.astype(np.int64), speaker.astype(np.int64), take, begins, names
