"""Tiny Shakespeare: predict the next character, or every one of a window, a client being a speaking role.

`shakespeare/input.txt` has blocks separated by an empty line; a block's first line is the role and a colon.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedsim.core.data_files import TABLE, Array, DataFolder, damaged, reading
from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, PositiveInt, options
from fedsim.problems.datasets.base import Dataset, Indices

FILE = "shakespeare/input.txt"


@options
class Shakespeare:
    """Windows of a role's text and the character that follows each."""

    length: PositiveInt = 80
    """Characters of a window."""
    stride: PositiveInt = 10
    """Characters from one window's start to the next one's."""
    min_characters: PositiveInt = 1000
    """Roles with less text are left out."""
    test_share: Fraction = 0.2
    """The last share of each role's text is for the test; no window lies across the cut."""
    targets: Literal["next", "every"] = "next"
    """What is to be said: the character behind a window, or at each of its characters the one that follows."""

    def load(self, folder: DataFolder) -> Dataset:
        """Return x int64 [n, length] token ids, y the next token, or all [n, length], and the role as owner."""
        path = folder.find(FILE)
        with reading(path, "text"):
            text = path.read_text(encoding="utf-8")
        symbols = np.unique(_codes(text))
        train: list[Array] = []
        test: list[Array] = []
        for spoken in _roles(text).values():
            tokens = np.searchsorted(symbols, _codes(spoken))
            cut = len(tokens) - int(self.test_share * len(tokens))
            if len(tokens) >= self.min_characters and cut > self.length:
                train.append(self._windows(tokens[:cut]))
                test.append(self._windows(tokens[cut:]))
        if not train:
            if not _roles(text):
                raise damaged(path, "has no block that begins with a role and a colon")
            remedy = f"no role in {path} has that much text and a window of {self.length} characters; lower it"
            raise InputError(f"{TABLE}.min_characters", self.min_characters, remedy)
        windows, windows_test = np.concatenate(train), np.concatenate(test)
        said = -1 if self.targets == "next" else slice(1, None)
        return Dataset(
            "shakespeare",
            windows[:, :-1],
            windows[:, said].copy(),
            windows_test[:, :-1],
            windows_test[:, said].copy(),
            len(symbols),
            _owners(train),
            _owners(test),
            vocabulary=len(symbols),
        )

    def _windows(self, tokens: Indices) -> Indices:
        """Every `stride`-th window with its next token: int64 [windows, length + 1]; perhaps none."""
        if len(tokens) <= self.length:
            return np.empty((0, self.length + 1), dtype=np.int64)
        return np.lib.stride_tricks.sliding_window_view(tokens, self.length + 1)[:: self.stride]


def _codes(text: str) -> Array:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _roles(text: str) -> dict[str, str]:
    """Return the text of each role, in the order of its first appearance; a line's end joins its blocks."""
    spoken: dict[str, list[str]] = {}
    for block in text.split("\n\n"):
        head, _, body = block.strip("\n").partition("\n")
        if head.endswith(":") and body:
            spoken.setdefault(head[:-1], []).append(body)
    return {role: "\n".join(blocks) for role, blocks in spoken.items()}


def _owners(windows: list[Array]) -> Indices:
    return np.repeat(np.arange(len(windows)), [len(part) for part in windows])
