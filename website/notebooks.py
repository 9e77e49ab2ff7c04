"""Notebooks as pages: their texts and code, and what an execution has shown, where they hold that."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def markdown(notebook: Path, place: Path) -> str:
    """The page that a notebook is; its pictures are written beside `place`, where the page is to stand."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts: list[str] = []
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts.append(f"```python\n{source}\n```")
            for turn, output in enumerate(cell["outputs"]):
                parts += _shown(output, place.with_name(f"{place.stem}-{number}-{turn}.png"))
    return "\n\n".join(parts) + "\n"


def _shown(output: Mapping[str, Any], picture: Path) -> Iterator[str]:
    """What a cell has shown, in the richest form that there is."""
    data = output.get("data", {})
    if "image/png" in data:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(base64.b64decode(data["image/png"]))
        yield f"![What the code above draws]({picture.name})"
    elif "text/html" in data:
        # A line without letters would end it.
        lines = (line for line in "".join(data["text/html"]).splitlines() if line.strip())
        yield "\n".join(["<div>", *lines, "</div>"])
    else:
        text = "".join(data.get("text/plain", output.get("text", ""))).rstrip()
        yield f"```text\n{text}\n```"
