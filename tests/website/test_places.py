"""The site's pages are those of the repository; links between them lead to the same things."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from website import notebooks, pages


def entries(nav: Any) -> Iterator[str]:
    """The pages of a navigation."""
    for entry in nav:
        inside = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from entries(inside) if isinstance(inside, list) else [inside]


def test_the_navigation_has_every_page_once() -> None:
    config = yaml.safe_load(pages.CONFIG.read_text(encoding="utf-8"))
    wanted = [*pages.places().values(), pages.METHODS, pages.api.API]
    assert sorted(entries(config["nav"])) == sorted(wanted)


def test_a_page_keeps_its_text_and_its_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    for name in ("docs/a.md", "README.md", "docs/pictures/p.png", "experiments/x.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    source = tmp_path / "docs" / "a.md"
    source.write_text(
        "[R](../README.md#top) [here](#b) [web](https://a.b) ![p](pictures/p.png) [x](../experiments/x.toml)\n"
        "```\n[R](../README.md)\n```\n"
    )
    assert pages.relinked(source.read_text(), source, "a.md", tmp_path / "out") == (
        "[R](overview.md#top) [here](#b) [web](https://a.b) ![p](pictures/p.png) x (`experiments/x.toml`)\n"
        "```\n[R](../README.md)\n```\n"
    )
    assert (tmp_path / "out" / "pictures" / "p.png").exists()


def test_a_link_to_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    source = tmp_path / "README.md"
    source.write_text("[gone](docs/gone.md)")
    with pytest.raises(pages.BrokenLinkError, match=r"gone\.md"):
        pages.relinked(source.read_text(), source, "overview.md", tmp_path / "out")


def test_a_notebook_is_a_page_with_what_it_shows(tmp_path: Path) -> None:
    outputs: list[dict[str, Any]] = [
        {"data": {"text/html": ["<table>\n", "\n", "</table>"], "text/plain": ["T"]}},
        {"data": {"image/png": base64.b64encode(b"ink").decode(), "text/plain": ["P"]}},
        {"name": "stdout", "text": ["a\n", "b\n"]},
        {"data": {"text/plain": ["1"]}},
    ]
    code = {"cell_type": "code", "source": ["x = 1\n", "x"], "outputs": outputs}
    cells = [{"cell_type": "markdown", "source": ["# Title\n", "[w](../docs/words.md)"]}, code]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    text = notebooks.markdown(tmp_path / "n.ipynb", tmp_path / "out" / "n.md")
    assert text.split("\n\n") == [
        "# Title\n[w](../docs/words.md)",
        "```python\nx = 1\nx\n```",
        "<div>\n<table>\n</table>\n</div>",
        "![What the code above draws](n-1-1.png)",
        "```text\na\nb\n```",
        "```text\n1\n```\n",
    ]
    assert (tmp_path / "out" / "n-1-1.png").read_bytes() == b"ink"
    source = pages.ROOT / "notebooks" / "n.ipynb"
    with pytest.raises(pages.BrokenLinkError, match=r"n-1-1\.png"):
        pages.relinked(text, source, "notebooks/n.md", tmp_path)
    linked = pages.relinked(text, source, "out/n.md", tmp_path)
    assert "[w](../words.md)" in linked
    assert "(n-1-1.png)" in linked
