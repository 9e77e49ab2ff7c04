"""A real browser for the tests of pages: Chromium, as the distribution has it, steered by Playwright.

FEDSIM_CHROMIUM names another one. Without Playwright or a Chromium these tests are skipped, and say so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HERE = ("127.0.0.1", "localhost", "::1")
INSIDE = ("file", "data", "blob", "about")
"""Schemes of addresses that lead to no machine but this one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process has the browser, however many run tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("browser"))


# Not for the session: as long as Playwright is there its event loop runs in this thread, and no other can, as by
# asyncio.run. For it to be closed with the package this folder must be one.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of this folder."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not here: pip install playwright")
    chromium = os.environ.get("FEDSIM_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium: install the distribution's, or name one in FEDSIM_CHROMIUM")
    with playwright.sync_playwright() as steered:
        opened = steered.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def faults() -> list[str]:
    """What `page` has seen that no page of ours may do; a test that provokes it empties the list."""
    return []


@pytest.fixture
def page(browser: Browser, faults: list[str]) -> Iterator[Page]:
    """An empty page, which fails its test by an error in it or in its console, or by asking another machine."""

    def refuse(route: Route) -> None:
        faults.append(f"asked for: {route.request.url}")
        route.abort()

    context = browser.new_context()
    context.route(lambda address: not stays(address), refuse)
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("console", lambda said: faults.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    yield page
    context.close()
    assert faults == []


def stays(address: str) -> bool:
    """Whether an address leads to this machine."""
    found = urlsplit(address)
    return found.scheme in INSIDE or found.hostname in HERE
