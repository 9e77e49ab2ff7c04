"""How a command answers: to people in sentences and tables, to scripts in the last line alone, or in JSON.

To scripts standard output has the answer and nothing else: what code that is loaded prints goes to standard error, and
so does, with --json, what people would be told.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from fedsim.cli.console import Console
from fedsim.core.terminal import printable, tell, without_notes

if TYPE_CHECKING:
    from rich.console import RenderableType

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the folder, in the last line, and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, a line each; notes go to standard error.")]
WIDE = 200
"""Letters of a line of a table that no terminal shows."""


class Answer:
    """How one command answers. out: where the answer goes."""

    def __init__(self, quiet: bool, as_json: bool, out: TextIO) -> None:
        self.quiet, self.as_json, self._out = quiet, as_json, out

    @property
    def watched(self) -> bool:
        """Whether somebody looks at a terminal on which lines can be drawn again."""
        return not self.quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def tell(self, text: str) -> None:
        """Tell people."""
        if not self.quiet:
            tell(text)

    def lay_out(self, table: RenderableType) -> None:
        """Show people a table."""
        if not self.quiet and not self.as_json:
            Console(width=None if sys.stdout.isatty() else WIDE).print(table)

    def give(self, record: Mapping[str, Any]) -> None:
        """Answer a program: an object of JSON in a line; a number that is not finite is null."""
        if self.as_json:
            line = json.dumps(_plain(record), allow_nan=False)
            print(line.replace("\x7f", "\\u007f"), file=self._out, flush=True)

    def place(self, folder: Path) -> None:
        """Say where what was made is, where nothing else is said."""
        if self.quiet and not self.as_json:
            print(printable(str(folder)), file=self._out, flush=True)


@contextmanager
def answering(quiet: bool = False, as_json: bool = False) -> Iterator[Answer]:
    """Within this block a command answers."""
    with ExitStack() as stack:
        if quiet:
            stack.enter_context(without_notes())
        out = stack.enter_context(_kept()) if quiet or as_json else sys.stdout
        yield Answer(quiet, as_json, out)


@contextmanager
def _kept() -> Iterator[TextIO]:
    """Standard output, to which within this block nothing else goes, be it written by other processes."""
    out = sys.stdout
    try:
        number, errors = out.fileno(), sys.stderr.fileno()
    except io.UnsupportedOperation:  # something of Python's stands in its place
        with redirect_stdout(sys.stderr):
            yield out
        return
    out.flush()
    with open(os.dup(number), "w", encoding=out.encoding, errors=out.errors) as kept:
        os.dup2(errors, number)
        try:
            with redirect_stdout(sys.stderr):
                yield kept
        finally:
            os.dup2(kept.fileno(), number)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
