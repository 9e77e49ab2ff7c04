"""The pictures that runs have drawn of their data and attacks, as the page holds them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.core.files import read_bytes
from fedsim.plots.evasion import ADVERSARIAL
from fedsim.plots.labels import PARTITION
from fedsim.reports.numbers import Group

MOST = 800_000
"""Bytes of the pictures of a kind that a page holds."""
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Held:
    """A picture, as an address that holds it, and the groups that it is of."""

    address: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Pictures of a kind, each once. left_out: so many have no room."""

    pictures: tuple[Held, ...]
    left_out: int


def partitions(groups: Sequence[Group]) -> Gallery:
    """Which labels the clients have, in each group's first run."""
    return _gallery(groups, PARTITION)


def adversaries(groups: Sequence[Group]) -> Gallery:
    """An image before and after an attack, in each group's first run."""
    return _gallery(groups, ADVERSARIAL)


def _gallery(groups: Sequence[Group], name: str) -> Gallery:
    found: dict[bytes, list[str]] = {}
    for group in groups:
        path = group.runs[0].path
        content = b"" if path is None or not (path / name).is_file() else read_bytes(path / name, MOST)
        if content.startswith(PNG):
            found.setdefault(content, []).append(group.name)
    held, room = [], MOST
    for content, names in found.items():
        room -= len(content)
        if room >= 0:
            held.append(Held(f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}", tuple(names)))
    return Gallery(tuple(held), len(found) - len(held))
