"""A table for a paper, a page or a spreadsheet: LaTeX (booktabs), Markdown or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.core.errors import InputError

FORMATS = (".tex", ".md", ".csv")
LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}
"""What stands for something else in LaTeX, or has no letter in the fonts of a paper."""
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~])")


def format_of(path: Path) -> str:
    """The ending that says what is written. InputError: nothing is written so."""
    if path.suffix.lower() not in FORMATS:
        raise InputError("to", str(path), f"let the name end in one of {', '.join(FORMATS)}")
    return path.suffix.lower()


@dataclass(frozen=True)
class Sheet:
    """Lines of texts below headings; bold: the places (line, column) of what is best; caption: what the signs mean."""

    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    bold: frozenset[tuple[int, int]]
    caption: str

    def latex(self) -> str:
        """A table float, with its caption above; the document needs the package booktabs."""
        rows = [" & ".join(map(_latex, self.headings)) + r" \\", r"\midrule"]
        for place, line in enumerate(self.lines):
            cells = (
                rf"\textbf{{{_latex(text)}}}" if (place, column) in self.bold else _latex(text)
                for column, text in enumerate(line)
            )
            rows.append(" & ".join(cells) + r" \\")
        head = [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{_latex(self.caption)}}}"] if self.caption else []),
            rf"\begin{{tabular}}{{l{'r' * (len(self.headings) - 1)}}}",
            r"\toprule",
        ]
        return "\n".join([*head, *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])

    def markdown(self) -> str:
        """A table with the caption below it."""
        lines = [
            [f"**{_markdown(text)}**" if (place, column) in self.bold else _markdown(text) for column, text in row]
            for place, row in enumerate(map(enumerate, self.lines))
        ]
        head = [[*map(_markdown, self.headings)], ["---", *["---:"] * (len(self.headings) - 1)]]
        return "\n".join([*(f"| {' | '.join(line)} |" for line in [*head, *lines]), *self._below(), ""])

    def _below(self) -> list[str]:
        return ["", _markdown(self.caption)] if self.caption else []


def csv_of(headings: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Lines of values; nothing for None."""
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([headings, *lines])
    return written.getvalue()


def _latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)


def _markdown(text: str) -> str:
    return MARKDOWN.sub(r"\\\1", text)
