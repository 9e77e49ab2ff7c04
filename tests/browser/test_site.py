"""The documentation site in a browser, opened from disk: formulas, search, both colour schemes, nothing fetched.

FEDSIM_SITE names a site that is built already; otherwise it is built here, where its tools are installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site."""
    built = os.environ.get("FEDSIM_SITE")
    if built is not None:
        return Path(built).resolve()
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("the site's tools are not here: pip install -c constraints.txt -e '.[docs]'")
    folder = tmp_path_factory.mktemp("website")
    command = [sys.executable, "-m", "website", "--folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_a_formula_is_drawn(site: Path, page: Page) -> None:
    page.goto((site / "methods" / "strategies" / "fedavg.html").as_uri())
    formula = page.locator("math").first.bounding_box()
    fraction = page.locator("p.formula").first.inner_text()
    assert formula is not None
    assert formula["height"] > 15
    assert "∑" in fraction


def test_a_page_of_methods_is_as_wide_as_a_narrow_window(site: Path, page: Page) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto((site / "methods" / "strategies" / "fedfix.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_the_search_finds_a_method(site: Path, page: Page) -> None:
    page.goto((site / "index.html").as_uri())
    page.keyboard.press("/")
    page.get_by_role("combobox").fill("FedFix")
    found = page.locator("a", has_text="Methods").filter(has_text="Strategies")
    found.first.wait_for()
    assert "fedfix" in found.first.inner_text().lower()


@pytest.mark.parametrize(("scheme", "least", "most"), [("light", 200, 255), ("dark", 0, 60)])
def test_the_scheme_is_the_readers(site: Path, page: Page, scheme: Literal["light", "dark"], least, most) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto((site / "index.html").as_uri())
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert all(least <= int(part) <= most for part in re.findall(r"\d+", colour)[:3])


def test_code_can_be_copied(site: Path, page: Page) -> None:
    page.goto((site / "overview.html").as_uri())
    assert page.locator(".highlight button[data-md-type=copy], .md-code__button").count() > 3
