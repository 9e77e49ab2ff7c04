"""A picture in memory, which a notebook shows."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from fedsim.core.errors import FedsimError
from fedsim.core.files import write_whole


class Picture:
    """A PNG. png: its bytes. A notebook shows it where it is the value of a cell."""

    def __init__(self, png: bytes) -> None:
        self.png = png

    @classmethod
    def of(cls, draw: Callable[[BytesIO], bool]) -> Picture:
        """What a function of this package draws. FedsimError: nothing, as no number was measured."""
        drawn = BytesIO()
        if not draw(drawn):
            raise FedsimError("there is nothing to draw: no number was measured")
        return cls(drawn.getvalue())

    def save(self, path: Path | str) -> None:
        """Write it into a file, whole or not at all. StorageError: it cannot be written."""
        write_whole(Path(path), self.png)

    def __repr__(self) -> str:
        return f"Picture({len(self.png):,} bytes of PNG)"

    def _repr_png_(self) -> bytes:
        return self.png
