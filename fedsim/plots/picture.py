"""A picture in memory, which a notebook shows."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from fedsim.core.errors import FedsimError
from fedsim.core.files import write_whole
from fedsim.plots.style import format_of

Draw = Callable[[Path | BytesIO], bool]
"""A function of this package that draws into a file, or into memory; False: there is nothing to draw."""


class Picture:
    """What a function of this package draws. png: as PNG. A notebook shows it where it is the value of a cell.

    FedsimError: there is nothing to draw, as no number was measured.
    """

    def __init__(self, draw: Draw) -> None:
        drawn = BytesIO()
        if not draw(drawn):
            raise FedsimError("there is nothing to draw: no number was measured")
        self.png, self._draw = drawn.getvalue(), draw

    def save(self, path: Path | str) -> None:
        """Write it into a file, whole or not at all, in the format of its name: .png, .pdf or .svg.

        InputError: it has another name. StorageError: it cannot be written.
        """
        if format_of(Path(path), "path") == "png":
            write_whole(Path(path), self.png)
        else:
            self._draw(Path(path))

    def __repr__(self) -> str:
        return f"Picture({len(self.png):,} bytes of PNG)"

    def _repr_png_(self) -> bytes:
        return self.png
