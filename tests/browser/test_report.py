"""The page of runs in a browser: it draws what plots.curves would, and does what its controls say."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runs_on_disk import write

from fedsim.plots.curves import _bands
from fedsim.reports.comparison import compare
from fedsim.reports.page import page as html_of
from fedsim.reports.page import write_page
from fedsim.running.folder import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "<img src=x onerror=alert(1)>\u2028${alert(1)}<b>"
PANEL = "document.querySelector('[data-measure=%s] .plot')"


def show(page: Page, runs: Any, folder: Path, **options: Any) -> Any:
    """Open the page of runs and wait until something is drawn; the comparison."""
    comparison = compare(runs, **options)
    write_page(comparison, folder / "page.html")
    page.goto((folder / "page.html").as_uri())
    page.locator("#curves").scroll_into_view_if_needed()
    page.wait_for_selector("html[data-drawn] #panels .main-svg")
    return comparison


def held(page: Page, what: str, measure: str = "test_accuracy") -> Any:
    """What Plotly holds of a panel."""
    return page.evaluate(f"{PANEL % measure}.{what}")


def drawn(page: Page, *, named: bool = True) -> list[dict[str, Any]]:
    """Names, places and values of the lines of the accuracy's panel that have a name, or of the others."""
    lines = held(page, "data.map(({name, x, y}) => ({name: name ?? '', x: [...x], y: [...y]}))")
    return [line for line in lines if bool(line["name"]) is named]


def until(seen: Any) -> None:
    """Wait for what a page does in its own time. (Its policy lets Playwright evaluate no text within it.)"""
    last = time.monotonic() + 10
    while not seen():
        assert time.monotonic() < last
        time.sleep(0.02)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups: of two seeds whose rounds take different times, and of one seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        with RunFolder.create(folder / "slow" / f"seed-{seed}", "slow") as made:
            made.write_config({"name": "x", "seed": seed, "client": {"kind": "sgd", "lr": 0.1}})
            for number in range(1, 8):
                row = {"round": number, "time": number * (1 + 0.3 * seed), "wall": 0.1 * number, "bytes_up": 10}
                row["test_accuracy"] = math.nan if number == 3 and seed else 0.1 * number + 0.02 * seed
                made.append(row | {"test_loss": 10.0 ** (-number)})
    fast = write(folder / "fast", [0.5, 0.6, 0.7, 0.8], lr=0.3)
    (fast / "clients.csv").write_text("client,examples,loss,accuracy\n0,10,0.5,0.75\n1,20,2.5,0.25\n2,30,1.5,0.5\n")
    works = [
        {"client": 0, "version": 0, "start": 0.0, "end": 1.0, "used": 2.0, "outcome": "late"},
        {"client": 1, "version": 1, "start": 1.0, "end": 2.0, "used": 2.0, "outcome": "used"},
    ]
    trace = {"staleness": {"0": 3, "2": 1}, "participation": [4, 0, 4], "until": 2.0, "timeline_clients": 20}
    RunFolder(fast).write_trace(trace | {"timeline": works})
    return folder


# One page for several tests, as a browser takes a second to open one; each puts back what it has chosen.
@pytest.fixture(scope="module")
def opened(browser: Browser, runs: Path) -> Iterator[tuple[Page, list[str], Any]]:
    faults: list[str] = []
    page = browser.new_context(color_scheme="dark").new_page()
    page.set_default_timeout(10_000)
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else faults.append(asked.url))
    comparison = show(page, runs, runs, targets={"test_accuracy": 0.65})
    yield page, faults, comparison
    page.context.close()


@pytest.fixture
def report(opened: tuple[Page, list[str], Any]) -> Iterator[Page]:
    """The page of `runs`; an error in it or in its console, or that it asks for anything, fails the test."""
    page, faults, _ = opened
    yield page
    assert faults == []


def test_curves_are_those_of_the_pictures_along_every_axis(report, opened):
    rows = opened[2].rows
    for axis in ("bytes", "time", "round"):
        report.select_option("#axis", axis)
        expected = _bands(rows, "test_accuracy", axis)
        found = {line["name"]: line for line in drawn(report) if line["name"] != "target"}
        assert list(found) == list(expected) == ["fast", "slow"]
        for name, (where, mean, _) in expected.items():
            assert found[name]["x"] == pytest.approx(where, rel=1e-4)
            assert found[name]["y"] == pytest.approx(mean, rel=1e-4)
    assert drawn(report)[-1] == {"name": "target", "x": [1, 7], "y": [0.65, 0.65]}


def test_a_band_is_one_standard_deviation_or_from_the_least_to_the_greatest(report):
    low, high = (line["y"] for line in drawn(report, named=False))
    # in round 1: 0.1 and 0.12, mean 0.11, s = 0.02 / sqrt(2)
    assert (low[0], high[0]) == pytest.approx((0.11 - 0.02 / math.sqrt(2), 0.11 + 0.02 / math.sqrt(2)), rel=1e-3)
    report.select_option("#seeds", "range")
    low, high = (line["y"] for line in drawn(report, named=False))
    assert (low[0], high[0]) == pytest.approx((0.1, 0.12))
    report.select_option("#seeds", "each")
    assert [len(line["y"]) for line in drawn(report, named=False)] == [7, 6]
    report.select_option("#seeds", "band")


def test_smoothing_and_logarithms(report):
    report.locator("#smoothing").fill("0.5")
    # weights 0.5 and 0.25, divided by their sum
    assert drawn(report)[0]["y"] == pytest.approx([0.6, (0.5 * 0.8 + 0.25 * 0.6) / 0.75])
    report.locator("#smoothing").fill("0")
    assert held(report, "layout.yaxis.type") == "linear"
    assert held(report, "layout.yaxis.type", "test_loss") == "log"  # over more than two powers of ten
    report.select_option("#vertical", "log")
    assert held(report, "layout.yaxis.type") == "log"
    report.select_option("#vertical", "auto")


def test_groups_and_measures_are_chosen(report):
    report.get_by_label("slow", exact=True).uncheck()
    assert [line["name"] for line in drawn(report)] == ["fast", "target"]
    report.locator("[data-measure=test_accuracy] details summary").click()
    table = report.locator("[data-measure=test_accuracy] table")
    table.wait_for()
    assert table.locator("thead th").all_inner_texts() == ["round", "fast"]
    assert table.locator("tbody tr").all_inner_texts() == ["2\t0.6", "4\t0.8"]
    report.get_by_role("button", name="only slow").click(force=True)
    assert [line["name"] for line in drawn(report)] == ["slow", "target"]
    report.get_by_role("button", name="all", exact=True).click()
    report.locator("#choice summary").click()
    report.get_by_label("bytes up", exact=True).check()
    report.locator("[data-measure=bytes_up]").scroll_into_view_if_needed()
    report.locator("[data-measure=bytes_up] .main-svg").first.wait_for()
    report.get_by_label("bytes up", exact=True).uncheck()
    assert report.locator("[data-measure=bytes_up]").count() == 0


def test_zoom_is_the_same_in_all_panels_and_is_kept(report):
    report.evaluate(f"Plotly.relayout({PANEL % 'test_accuracy'}, {{'xaxis.range': [2, 3]}})")
    until(lambda: held(report, "layout.xaxis.range", "test_loss") == [2, 3])
    report.select_option("#seeds", "range")
    assert held(report, "layout.xaxis.range", "test_loss") == [2, 3]
    report.select_option("#seeds", "band")
    report.click("#reset")
    until(lambda: held(report, "layout.xaxis.range", "test_loss")[1] > 6)


def test_tables_sort_by_numbers_and_filter_by_text(report):
    table = report.locator("#table-summary")
    names = lambda: table.locator("tbody th").all_inner_texts()  # noqa: E731
    head = table.get_by_role("columnheader", name="test_accuracy, final")
    head.get_by_role("button").click()  # 0.8 and 0.71: the largest first
    assert (names(), head.get_attribute("aria-sort")) == (["fast", "slow"], "descending")
    head.get_by_role("button").click()
    assert (names(), head.get_attribute("aria-sort")) == (["slow", "fast"], "ascending")
    rows = report.locator("#table-configuration tbody tr:visible")
    assert rows.locator("th").all_inner_texts() == ["name", "client.kind", "≠ client.lr"]
    report.get_by_label("only what differs").check()
    assert rows.locator("th").all_inner_texts() == ["≠ client.lr"]
    report.get_by_label("only what differs").uncheck()
    report.locator("input[data-table=table-configuration][type=search]").fill("client")
    assert rows.locator("th").all_inner_texts() == ["client.kind", "≠ client.lr"]


def test_every_seed_is_drawn_beside_its_mean(report):
    report.select_option("#outcome", "test_accuracy, final")
    report.locator("#outcome-figure").scroll_into_view_if_needed()
    report.locator("[data-measure=outcomes] .main-svg").first.wait_for()
    points = held(report, "data.filter(one => one.mode === 'markers').map(({x, y}) => [[...x], y[0]])", "outcomes")
    # the better group is the last, which is drawn highest; of each its seeds, then their mean
    assert points == [[[0.7, 0.72], "slow"], [[0.71], "slow"], [[0.8], "fast"], [[0.8], "fast"]]


def test_clients_are_shown_the_worst_first(report):
    table = report.locator("#table-clients tbody tr")
    assert table.all_inner_texts() == ["1\t20\t0\t2.5\t0.25", "2\t30\t4\t1.5\t0.5", "0\t10\t4\t0.5\t0.75"]
    assert report.inner_text("#worst") == "Worst by accuracy: 1 (0.25), 2 (0.5), 0 (0.75)."
    report.select_option("#client-measure", "loss")
    assert report.inner_text("#worst") == "Worst by loss: 1 (2.5), 2 (1.5), 0 (0.5)."
    report.locator("#table-clients").get_by_role("button", name="accuracy").click()
    assert [text[0] for text in table.all_inner_texts()] == ["0", "2", "1"]
    report.locator("#client-figures").scroll_into_view_if_needed()
    report.locator("[data-measure=clients] .main-svg").first.wait_for()
    assert held(report, "data[0].x", "clients") == [0.5, 1.5, 2.5]
    assert held(report, "data[0].y", "clients") == pytest.approx([1 / 3, 2 / 3, 1])


def test_virtual_time_is_drawn(report):
    report.locator("#time-figures").scroll_into_view_if_needed()
    report.locator("[data-measure=staleness] .main-svg").first.wait_for()
    bars = "data.filter(one => one.type === 'bar').map(({name, base, x, y}) => [name, [...base], [...x], [...y]])"
    late = "late: a window closed without it"
    assert held(report, bars, "timeline") == [["at work", [1], [1], ["1"]], [late, [0], [1], ["0"]]]
    assert held(report, "data[0].y", "staleness") == [0.75, 0.25]
    assert held(report, "data[0].x", "participation") == [0, 4]


def test_a_page_is_dark_or_light_as_the_system_is_or_as_its_reader_wants(report):
    def look() -> tuple[Any, ...]:
        page_colour = report.evaluate("getComputedStyle(document.body).color")
        return held(report, "layout.font.color", "outcomes"), page_colour

    report.locator("#theme").scroll_into_view_if_needed()
    until(lambda: held(report, "closest('.panel').figure.visible", "outcomes"))
    dark = look()
    report.get_by_role("button", name="theme: auto").click()
    light = look()
    assert [one != other for one, other in zip(dark, light, strict=True)] == [True, True]
    report.get_by_role("button", name="theme: light").click()
    assert look() == dark


def test_names_are_texts_in_pictures_too(page, tmp_path):
    said = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    runs = [write(tmp_path / HOSTILE, [0.1, 0.5]), write(tmp_path / "b", [0.2, 0.6], lr=1.0)]
    show(page, runs, tmp_path)
    assert HOSTILE.replace("\u2028", r"\u2028") in page.inner_text("#legend")
    box = page.locator("[data-measure=test_accuracy] .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("[data-measure=test_accuracy] .hoverlayer text")
    assert "<img src=x onerror=alert(1)>" in page.text_content("[data-measure=test_accuracy] .hoverlayer")
    assert page.locator("img").count() == 0
    assert said == []


def test_a_live_page_has_news_and_keeps_what_was_chosen(page, tmp_path):
    run, other = write(tmp_path / "runs" / "b", [0.1, 0.5]), tmp_path / "runs" / "a"
    page.route(
        "http://localhost/",
        lambda route: route.fulfill(
            body=html_of(compare(run.parent), live=True), content_type="text/html; charset=utf-8"
        ),
    )
    page.clock.install()
    page.goto("http://localhost/")
    page.locator("#curves").scroll_into_view_if_needed()
    page.wait_for_selector("html[data-drawn] #panels .main-svg")
    page.get_by_label("b", exact=True).uncheck()
    page.get_by_role("columnheader", name="rounds done").get_by_role("button").click()
    page.get_by_role("columnheader", name="rounds done").get_by_role("button").click()
    write(other, [0.2, 0.3, 0.4, 0.6], lr=0.3)
    page.clock.run_for(3100)
    until(lambda: page.inner_text("#lead").startswith("2 runs"))
    until(lambda: [line["name"] for line in drawn(page)] == ["a"])
    assert not page.get_by_label("b", exact=True).is_checked()
    assert page.locator("#table-summary tbody th").all_inner_texts() == ["b", "a"]  # by rounds, as before
    assert page.inner_text("#state") == "live"
    assert page.locator("#clients").count() == 0
    (run / "clients.csv").write_text("client,loss\n0,0.5\n1,2.5\n")
    page.clock.run_for(3100)
    page.get_by_role("link", name="Clients").wait_for()
    assert page.inner_text("#worst") == "Worst by loss: 1 (2.5), 0 (0.5)."
    order = page.locator("main > section").evaluate_all("sections => sections.map(({id}) => id)")
    assert order[:4] == ["summary", "curves", "clients", "faults"]


def test_own_models_are_drawn_against_the_global_one_and_by_what_clients_have(page, tmp_path):
    head = "client,examples,train_examples,label_distance,participation,loss,accuracy,personal_loss,personal_accuracy"
    lines = ["0,4,10,0.25,2,0.5,0.5,0.25,0.75", "1,4,20,0.5,0,0.5,1,0.75,0.75", "2,0,30,0.5,1,,,,"]
    for name, lr, told in (("a", 0.1, lines), ("b", 0.3, [f"{line},{place % 2}" for place, line in enumerate(lines)])):
        run = write(tmp_path / name, [0.1, 0.5], lr=lr)
        columns = head if name == "a" else f"{head},cluster"
        (run / "clients.csv").write_text("\n".join([columns, *told, ""]))
    show(page, [tmp_path / "a", tmp_path / "b"], tmp_path)
    page.get_by_label("b", exact=True).uncheck()
    page.locator("#own-figures").scroll_into_view_if_needed()
    page.locator("[data-measure=own-label_distance] .main-svg").first.wait_for()
    points = "data.filter(({mode}) => mode === 'markers').map(({x, y, marker}) => [[...x], [...y], [...marker.symbol]])"
    symbols = ["circle", "circle-open"]  # the second has not taken part, and the third is not judged
    assert held(page, points, "own-global") == [[[0.5, 1], [0.75, 0.75], symbols]]
    assert held(page, points, "own-train_examples") == [[[10, 20], [0.25, -0.25], symbols]]
    assert held(page, points, "own-label_distance") == [[[0.25, 0.5], [0.25, -0.25], symbols]]
    assert held(page, "layout.xaxis.type", "own-train_examples") == "log"
    page.select_option("#own-measure", "personal_accuracy")
    assert held(page, points, "own-train_examples") == [[[10, 20], [0.75, 0.75], symbols]]
    page.get_by_label("b", exact=True).check()
    page.locator("[data-measure=own-clusters]").scroll_into_view_if_needed()
    page.locator("[data-measure=own-clusters] .main-svg").first.wait_for()
    assert held(page, points, "own-clusters") == [
        [[0, 2], ["0 (2)", "0 (2)"], ["square", "square"]],
        [[1], ["1 (1)"], ["square-open"]],
    ]


def test_what_is_not_in_sight_is_drawn_for_a_printer(page, tmp_path):
    page.set_viewport_size({"width": 500, "height": 50})
    show(page, write(tmp_path / "a", [0.1, 0.5]), tmp_path)
    panels = page.locator("#panels .panel").count()
    assert page.locator("#panels .panel:has(.main-svg)").count() < panels
    assert page.locator(".nothing:visible").count() == 0  # they are not drawn yet
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    until(lambda: page.locator("#panels .panel:has(.main-svg)").count() == panels)
