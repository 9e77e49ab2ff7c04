"""What a server shows of runs that go on renews itself, and what its reader has chosen stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from fedsim.reports.watching.serve import serve
from fedsim.running.folder import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Page


def begun(path: Path, seed: int = 0) -> RunFolder:
    """A run that this process goes on with, with two rows."""
    folder = RunFolder.create(path, "x")
    folder.write_config({"name": "x", "seed": seed, "rounds": 10})
    for number in (1, 2):
        go_on(folder, number)
    return folder


def go_on(folder: RunFolder, number: int) -> None:
    folder.append({"round": number, "time": 1.0 * number, "test_accuracy": number / 10})


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where the runs of this test are shown."""
    served = serve(tmp_path, "127.0.0.1", 0)
    answering = Thread(target=served.run)
    answering.start()
    yield served.address
    served.server.should_exit = True
    answering.join()


def ask_now(page: Page) -> None:
    """Have a page ask for news before its time has come."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def names(page: Page) -> list[str]:
    """The runs that the list shows."""
    return [name.strip() for name in page.locator("tr.run:visible th").all_inner_texts()]


def test_the_list_renews_itself_and_keeps_what_was_chosen(page, address, tmp_path):
    with begun(tmp_path / "a") as a, begun(tmp_path / "sweep-0" / "x" / "seed-0"), begun(tmp_path / "b"):
        page.goto(address)
        page.get_by_role("button", name="fold").click()
        for name in ("a", "b"):
            page.get_by_label(f"choose {name}", exact=True).check()
        page.get_by_role("link", name="a", exact=True).focus()
        assert page.locator("tr.run:visible").count() == 2
        go_on(a, 3)
        begun(tmp_path / "c").close()
        ask_now(page)
        page.get_by_text("3 of 10").wait_for()
        assert names(page) == ["c", "b", "a"]  # the newest first
        assert page.inner_text("#said") == "4 runs: 3 running, 1 interrupted"
        checked = page.locator("input:checked").evaluate_all("boxes => boxes.map(({value}) => value)")
        assert checked == ["b", "a"]
        assert page.evaluate("document.activeElement.textContent") == "a"
        page.fill("#filter", "interr")
        assert names(page) == ["c"]
        page.fill("#filter", "")
        page.get_by_role("button", name="compare those chosen").click()
        assert page.locator("#summary tbody th").all_inner_texts() == ["a", "b"]


def test_the_list_says_when_nobody_answers(page, tmp_path, faults):
    served = serve(tmp_path, "127.0.0.1", 0)
    answering = Thread(target=served.run)
    answering.start()
    page.goto(served.address)
    assert page.inner_text("#said") == "No run is here yet."
    served.server.should_exit = True
    answering.join()
    ask_now(page)
    page.get_by_text("No news since").wait_for()
    assert all("ERR_CONNECTION" in fault for fault in faults)
    faults.clear()


def test_a_page_grows_with_its_runs_and_keeps_what_was_chosen(page, address, tmp_path):
    panel = "document.querySelector('[data-measure=test_accuracy] .plot')"
    with begun(tmp_path / "s" / "a") as a, begun(tmp_path / "s" / "b", seed=1):
        page.clock.install()
        page.goto(f"{address}runs/s")
        page.locator("#curves").scroll_into_view_if_needed()
        page.wait_for_selector("html[data-drawn] #panels .main-svg")
        page.select_option("#seeds", "each")
        page.evaluate(f"Plotly.relayout({panel}, {{'xaxis.range': [1, 2], 'yaxis.range': [0.1, 0.2]}})")
        page.locator("#table-configuration thead button").first.click()
        page.fill("input[data-table=table-configuration]", "name")
        seen = page.evaluate(f"{panel}.getBoundingClientRect().top")
        assert page.evaluate(f"{panel}.data.map(({{x}}) => x.length)") == [2, 2, 2]
        go_on(a, 3)
        begun(tmp_path / "s" / "c", seed=2).close()
        with page.expect_response(lambda answer: answer.status == 200):
            page.clock.run_for(3_100)
        page.get_by_text("3 runs in 1 group: 2 running, 1 interrupted").wait_for()
        assert page.evaluate(f"{panel}.data.map(({{x}}) => x.length)") == [3, 2, 2, 2]
        assert page.evaluate(f"{panel}.layout.xaxis.range") == [1, 2]
        assert page.evaluate(f"{panel}.layout.yaxis.range") == [0.1, 0.2]
        assert page.locator("#seeds").input_value() == "each"
        assert page.locator("#table-configuration tbody tr:visible th").all_inner_texts() == ["name"]
        assert page.locator("#table-configuration thead th").first.get_attribute("aria-sort") == "ascending"
        assert page.evaluate(f"{panel}.getBoundingClientRect().top") == pytest.approx(seen, abs=1)
        with page.expect_response(lambda answer: answer.status == 304):
            page.clock.run_for(3_100)
        page.get_by_role("link", name="all runs").click()
        page.locator("tr.run").first.wait_for()
        assert names(page) == ["a", "b", "c"]
