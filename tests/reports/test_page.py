"""The page of runs: what it says, that nothing in it can become markup or script, and how large it is."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import random
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from runs_on_disk import write

from fedsim.core.errors import FedsimError
from fedsim.reports.comparison import compare
from fedsim.reports.page import document as parts
from fedsim.reports.page import page, write_page
from fedsim.reports.page.columns import column, shortened
from fedsim.running.folder import RunFolder
from fedsim.running.study import Study, Trial
from fedsim.running.summary import summarise

HOSTILE = '</script><img src=x onerror="alert(1)">\u2028{{ 7 * 7 }}<b>'


class Read(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and the texts of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data

    def numbers(self) -> Any:
        """What the scripts are given to draw."""
        return json.loads(zlib.decompress(base64.b64decode(self.scripts[0])))


def told(text: str) -> str:
    """The texts of a page, as a reader has them."""
    body = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def ended(path: Path, status: str = "finished") -> None:
    folder = RunFolder(path)
    folder.write_summary(summarise(totalled(folder.rows()), status, ""))


def totalled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the counts that those of a real run have."""
    counts = dict.fromkeys(("late", "crashed", "lost", "faults", "extra_queries"), 0)
    return [counts | row for row in rows]


def test_a_page_says_what_was_compared_which_is_best_and_how_runs_ended(tmp_path):
    for seed, last in enumerate([0.8, 0.9]):
        ended(write(tmp_path / "slow" / f"seed-{seed}", [0.1, last], seed=seed))
        ended(write(tmp_path / "fast" / f"seed-{seed}", [0.1, last + 0.05], seed=seed, lr=0.3), "stalled")
    said = told(page(compare([tmp_path])))
    assert "4 runs in 2 groups: 2 stalled, 2 finished." in said
    assert "no test, as the difference is the same for every seed" in said
    # means of 0.85, 0.95 and of 0.8, 0.9; s = sqrt(2 * 0.05^2) = 0.0707 for both
    best = "Best by test_accuracy, final (higher is better): fast 0.9000 ± 0.0707; next slow 0.8500 ± 0.0707."
    assert best in said
    assert "≠ client.lr 0.3 0.1" in said
    assert "single seed" not in said


def test_the_best_of_losses_is_the_least_and_one_seed_tells_nothing(tmp_path):
    for name, lr, loss in (("a", 0.1, 2.0), ("b", 0.2, 1.0)):
        with RunFolder.create(tmp_path / name, name) as folder:
            folder.write_config({"name": name, "seed": 0, "client": {"lr": lr}})
            folder.append({"round": 1, "value": loss})
    said = told(page(compare([tmp_path])))
    assert "Best by value, final (lower is better): b 1; next a 2." in said
    assert "value, final: no test, as one seed has no spread; run several seeds, as with --seeds 0-4." in said


def test_a_page_has_intervals_of_means_and_every_pair_that_was_tested(tmp_path):
    for seed, last in enumerate([0.8, 0.9]):
        write(tmp_path / "slow" / f"seed-{seed}", [0.1, last], seed=seed)
        write(tmp_path / "fast" / f"seed-{seed}", [0.1, last + 0.03 + 0.001 * seed], seed=seed, lr=0.3)
    said = told(page(compare([tmp_path], measures=["test_accuracy"])))
    # t(1) = 12.706: 0.85 ± 12.706 * 0.05; of the differences 0.0305 ± 12.706 * 0.0005, t = 61, p = 0.0104.
    assert "fast 0.2388 to 1.5222" in said
    assert "slow 0.2147 to 1.4853" in said
    assert "test_accuracy, final fast slow 0.0305 0.0241 to 0.0369 paired t 0.0104 0.0104 – fast" in said
    alone = told(page(compare([tmp_path / "slow" / "seed-0"])))
    assert "Intervals and tests" not in alone


def test_a_page_says_who_comes_furthest_for_what_it_costs(tmp_path):
    for name, rounds in (("short", 2), ("long", 4)):
        write(tmp_path / name, [0.1, 0.5] * (rounds // 2), lr=0.1 * rounds)
    said = told(page(compare([tmp_path])))
    assert "Who comes furthest for what it costs, by the means of the seeds" in said
    assert "short on the front best on the front best" in said
    assert "long behind short behind short" in said
    assert "comes furthest" not in told(page(compare([tmp_path / "short"])))


def test_the_numbers_of_a_page_are_those_of_the_rows(tmp_path):
    write(tmp_path / "a", [0.123456789, None, 0.5])
    (group,) = Read(page(compare([tmp_path / "a"]))).numbers()["groups"]
    (run,) = group["runs"]
    assert run["rows"] == 3
    assert run["columns"]["round"] == [1, 2, 3]
    assert run["columns"]["bytes_up"] == 2**18  # the same in all rows
    assert run["columns"]["train_loss"] == [1, 0.5, 0.33333]
    assert run["columns"]["test_accuracy"] == [None, None, 0.5]  # the second was not finite, the first not measured


def test_numbers_keep_five_digits_and_whole_ones_all():
    assert [shortened(value) for value in (123456789, 1.23456789e-7, 123456.789, float("nan"), None)] == [
        *(123456789, 1.2346e-7, 123460, None, None)
    ]
    assert column([2.0, 2.0]) == 2
    assert column([]) == []
    assert column([2.0, None]) == [2, None]


def test_nothing_that_a_run_is_called_or_holds_becomes_markup_or_script(tmp_path):
    hostile = HOSTILE.replace("/", "∕")  # which no file name can have
    run = write(tmp_path / hostile, [0.1, 0.5], note=HOSTILE, **{HOSTILE: {HOSTILE: HOSTILE}})
    write(tmp_path / "b", [0.1, 0.5])
    clean = Read(page(compare([tmp_path / "b", write(tmp_path / "c", [0.1, 0.5], lr=0.3)])))
    text = page(compare([run, tmp_path / "b"]))
    read = Read(text)
    assert {tag for tag, _ in read.elements} == {tag for tag, _ in clean.elements}
    assert len(read.scripts) == len(clean.scripts) == 3
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    assert read.scripts[2] == clean.scripts[2]
    assert "{{ 7 * 7 }}" in text  # a template is not rendered twice
    assert "\u2028" not in text
    assert read.numbers()["groups"][0]["name"] == hostile.replace("\u2028", "\\u2028")


@pytest.mark.parametrize("live", [False, True])
def test_the_policy_lets_only_the_own_scripts_run_and_nothing_be_loaded(tmp_path, live):
    read = Read(page(compare([write(tmp_path / "a", [0.1, 0.5])]), live=live))
    (policy,) = (meta["content"] for tag, meta in read.elements if tag == "meta" and "http-equiv" in meta)
    library = zlib.decompress(base64.b64decode(read.scripts[1]))
    assert library.startswith(b"/**\n* plotly.js")
    for script in (read.scripts[2].encode(), library):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert ("connect-src 'self'" in policy) is live
    addresses = [
        value for _, attributes in read.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    # a live page leads to the list of runs
    assert [address for address in addresses if not address.startswith(("#", "data:"))] == (["/"] if live else [])


def test_the_parts_of_a_page_that_have_a_name_are_where_its_links_lead(tmp_path):
    read = Read(page(compare([write(tmp_path / "a", [0.1, 0.5])])))
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    named = [
        attributes.get(name) for _, attributes in read.elements for name in ("aria-labelledby", "for", "data-table")
    ]
    links = [attributes["href"][1:] for tag, attributes in read.elements if tag == "a"]
    assert {*links, *filter(None, named)} <= {*ids}
    heads = [attributes for tag, attributes in read.elements if tag == "th"]
    assert heads
    assert all(attributes["scope"] in ("col", "row") for attributes in heads)


def test_runs_that_are_under_way_are_shown_and_those_without_a_row_named(tmp_path):
    write(tmp_path / "runs" / "a", [0.1, 0.5])
    with RunFolder.create(tmp_path / "runs" / "b", "b") as folder:
        folder.write_config({"name": "b", "seed": 0})
    with RunFolder.create(tmp_path / "runs" / "a" / "c", "c") as folder:  # in a run, so no run of its own
        folder.write_config({"name": "c", "seed": 0})
    comparison = compare(tmp_path / "runs", under_way=True)
    said = told(page(comparison))
    assert "1 run in 1 group: 1 interrupted." in said
    assert f"Left out: {tmp_path / 'runs' / 'b'} : it has no row yet" in said
    empty = told(page(compare(tmp_path / "runs" / "b", under_way=True)))
    assert "No run has a row yet." in empty


def test_targets_are_in_the_table_and_in_the_numbers(tmp_path):
    run = write(tmp_path / "a", [0.1, 0.5, 0.6, 0.7])
    made = page(compare([run], targets={"test_accuracy": 0.6}))
    assert Read(made).numbers()["targets"] == {"test_accuracy": 0.6}
    assert "rounds until test_accuracy 0.6" in told(made)


def test_twenty_runs_of_a_thousand_rounds_stay_below_six_megabytes(tmp_path):
    """Here 2 runs, of 25 columns of noise, which nothing compresses; 18 more take at most as much each."""
    draw = random.Random(0).random
    for seed in (0, 1):
        with RunFolder.create(tmp_path / f"seed-{seed}", "a") as folder:
            folder.write_config({"name": "a", "seed": seed})
            text = "".join(
                json.dumps({"round": number + 1} | {f"test_{name}_loss": draw() for name in range(24)}) + "\n"
                for number in range(1000)
            )
            (folder.path / "metrics.jsonl").write_text(text)
    one, two = (len(page(compare(runs)).encode()) for runs in (tmp_path / "seed-0", tmp_path))
    assert one + 19 * (two - one) < 6e6


def test_clients_and_virtual_time_are_in_the_numbers(tmp_path):
    run = write(tmp_path / "a", [0.1, 0.5])
    (run / "clients.csv").write_text("client,name,examples,loss,accuracy\n0,ann,10,0.5,\n1,bob,20,0.25,0.75\n")
    works = [
        {"client": 0, "version": 0, "start": 0.0, "end": 1.0, "used": 2.0, "outcome": "late"},
        {"client": 1, "version": 1, "start": 0.0, "end": None, "used": None, "outcome": "working"},
    ]
    trace = {"staleness": {"0": 3, "2": 1}, "participation": [4, 0], "until": 2.0, "timeline_clients": 20}
    RunFolder(run).write_trace(trace | {"timeline": works, "clients": ["ann", "bob"], "faults": {"sign": 2}})
    read = Read(page(compare([run])))
    (group,) = read.numbers()["groups"]
    clients = {"rows": 2, "client": [0, 1], "name": ["ann", "bob"], "examples": [10, 20], "participation": [4, 0]}
    assert group["runs"][0]["clients"] == clients | {"loss": [0.5, 0.25], "accuracy": [None, 0.75]}
    assert group["runs"][0]["staleness"] == {"0": 3, "2": 1}
    assert group["runs"][0]["participation"] == [[0, 1], [4, 1]]  # one client never, one four times
    timeline = group["timeline"]
    assert (timeline["rows"], timeline["of"], timeline["until"], timeline["names"]) == (2, 2, 2, ["ann", "bob"])
    assert timeline["columns"]["stop"] == [1, 2]  # what goes on lasts until the trace ends
    assert timeline["columns"]["outcome"] == ["late", "working"]
    assert [found["better"] for found in read.numbers()["clients"]] == ["lower", "higher"]


def test_what_own_models_gain_is_in_the_numbers(tmp_path):
    run = write(tmp_path / "a", [0.1, 0.5])
    head = "client,examples,train_examples,label_distance,participation,cluster,loss,accuracy"
    lines = ["0,4,10,0.25,2,1,0.5,0.5,0.25,0.75", "1,0,20,0.5,0,0,,,,"]
    (run / "clients.csv").write_text("\n".join([f"{head},personal_loss,personal_accuracy", *lines, ""]))
    read = Read(page(compare([run])))
    clients = read.numbers()["groups"][0]["runs"][0]["clients"]
    assert clients["gain"] == [0.25, None]
    assert "a: own models are better for 1 of 1 clients, as good for 0, worse for 0." in told(page(compare([run])))
    assert (clients["train_examples"], clients["participation"], clients["cluster"]) == ([10, 20], [2, 0], [1, 0])
    better = {found["name"]: found["better"] for found in read.numbers()["clients"]}
    expected = {"loss": "lower", "accuracy": "higher", "personal_loss": "lower", "personal_accuracy": "higher"}
    assert better == expected | {"gain": "higher"}
    assert [attributes["id"] for tag, attributes in read.elements if tag == "section"].count("personal") == 1
    (run / "clients.csv").write_text("client,examples,loss\n0,4,0.5\n")
    read = Read(page(compare([run])))
    assert "personal" not in [attributes["id"] for tag, attributes in read.elements if tag == "section"]
    assert "gain" not in read.numbers()["groups"][0]["runs"][0]["clients"]


def test_what_went_wrong_and_what_it_cost_is_added_up(tmp_path):
    for seed, crashed in ((0, 1), (1, 3)):
        run = write(tmp_path / "a" / f"seed-{seed}", [0.1, 0.5], seed=seed)
        rows = [row | {"late": 0, "crashed": crashed} for row in RunFolder(run).rows()]
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    said = told(page(compare([tmp_path / "a"])))
    # two rounds of 1 and of 3: 2 and 6, mean 4, s = sqrt(2 * 2^2) = 2.83; nothing was late
    assert "group orders ended by a failure a 4 ± 2.83" in said
    # 2^18 bytes a round up and twice as many down, ten replies each
    assert "0.50 ± 0 0.25 ± 0 1 ± 0 0.50 ± 0 20 ± 0" in said
    clean = told(page(compare([write(tmp_path / "b", [0.1, 0.5])])))
    assert "Nothing has gone wrong" in clean


def test_runs_that_failed_or_were_ended_say_why(tmp_path):
    run = write(tmp_path / "a", [0.1, 0.5])
    RunFolder(run).write_traceback("Traceback\n  File 'x'\nValueError: <b>no</b>\n")
    ended_run = write(tmp_path / "b", [0.1, 0.5], lr=0.3)
    folder = RunFolder(ended_run)
    folder.write_summary(summarise(totalled(folder.rows()), "diverged", "the loss is not finite"))
    text = page(compare([run, ended_run]))
    said = told(text)
    assert "1 failed, 1 diverged" in said
    assert "b: diverged, the loss is not finite" in said
    assert "a: what was said Traceback File 'x' ValueError: <b>no</b>" in said
    assert "<b>no" not in text


def test_pictures_are_held_once_and_only_if_they_are_pictures(tmp_path):
    png = b"\x89PNG\r\n\x1a\n"
    for name, lr, content in (
        ("a", 0.1, png + b"1"),
        ("b", 0.2, png + b"1"),
        ("c", 0.3, png + b"2"),
        ("d", 0.4, b"<svg"),
    ):
        run = write(tmp_path / name, [0.1, 0.5], lr=lr)
        (run / "partition.png").write_bytes(content)
    (run / "adversarial.png").write_bytes(png + b"3")
    read = Read(page(compare(tmp_path)))
    images = [attributes for tag, attributes in read.elements if tag == "img"]
    held = [(base64.b64decode(image["src"].partition(",")[2])[8:], image["alt"]) for image in images]
    assert [content for content, _ in held] == [b"1", b"2", b"3"]
    assert held[0][1] == "labels of the clients of a, b"


def test_each_group_says_how_to_run_it_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        versions = {"python": "3.11", "fedsim": "0.1.0", "torch": "2.13.0+cpu"}
        write(tmp_path / "a b" / f"seed-{seed}", [0.1, 0.5], seed=seed, versions=versions, data={"sha256": "ab12"})
    read = page(compare([tmp_path / "a b"]))
    said = told(read)
    assert "pip install fedsim-lab==0.1.0 torch==2.13.0" in said
    assert "fedsim run 'a b/seed-0/config.toml' --seeds 0,1" in said
    assert (
        html.escape((tmp_path / "a b" / "seed-0" / "config.toml").read_text(), quote=False).replace('"', "&#34;")
        in read
    )
    assert "sha256 ab12" in said


def test_options_of_three_groups_are_drawn_beside_what_came_of_them(tmp_path):
    for name, lr, last in (("a", 0.01, 0.5), ("b", 0.1, 0.7), ("c", 1.0, 0.6)):
        write(tmp_path / name, [0.1, last], lr=lr, note=name)
    tried = Read(page(compare(tmp_path))).numbers()["tried"]
    assert (tried["metric"], tried["better"]) == ("test_accuracy, final", "higher")
    # the rates are a hundredfold apart, so their axis is logarithmic; notes are no numbers
    assert tried["axes"] == [{"name": "note", "log": False}, {"name": "client.lr", "log": True}]
    lines = [(line["group"], line["values"], line["outcome"]) for line in tried["lines"]]
    assert lines == [(0, ["a", 0.01], 0.5), (1, ["b", 0.1], 0.7), (2, ["c", 1], 0.6)]
    assert Read(page(compare([tmp_path / "a", tmp_path / "b"]))).numbers()["tried"] is None


def test_every_seeds_outcome_is_told_with_the_interval_of_their_mean(tmp_path):
    for seed, last in enumerate([0.7, 0.8, 0.9]):
        write(tmp_path / f"seed-{seed}", [0.1, last], seed=seed)
    outcomes = {found["label"]: found for found in Read(page(compare(tmp_path))).numbers()["outcomes"]}
    assert outcomes["test_accuracy, final"]["values"] == [[0.7, 0.8, 0.9]]
    # t of 2 degrees of freedom at 97.5 % is 4.3027; s = 0.1: 0.8 ± 4.3027 * 0.1 / sqrt(3)
    assert outcomes["test_accuracy, final"]["intervals"] == [[0.55159, 1.0484]]
    assert outcomes["test_loss, best"]["better"] == "lower"


def test_a_search_is_shown_with_its_trials_and_its_options_by_importance(tmp_path):
    tried = ((0.1, 3, 0.8, "complete"), (0.3, 1, None, "pruned"), (0.2, 2, 0.9, "complete"))
    trials = []
    for number, (lr, epochs, value, state) in enumerate(tried):
        folder = write(tmp_path / f"trial-{number}" / "seed-0", [0.1, value or 0.2], lr=lr).parent
        options, values = {"client.lr": lr, "client.epochs": epochs}, () if value is None else (value,)
        trials.append(Trial(number, options, state, value, values, 2, 1.5, folder, "worse than the median"))
    study = Study(
        metric="test_accuracy",
        higher_is_better=True,
        space={"client.lr": "log:0.01..1", "client.epochs": "int:1..3"},
        seeds=(0,),
        sampler="tpe",
        pruner="median",
        trials=tuple(trials),
        importance={"client.lr": 0.25, "client.epochs": 0.75},
        best=2,
        test={"test_loss": (0.25,)},
    )
    text = page(compare(tmp_path), study=study)
    said, drawn = told(text), Read(text).numbers()["tried"]
    assert "3 trials, proposed by tpe, given up by median." in said
    assert "Best: trial 2, test_accuracy 0.9, with client.lr = 0.2, client.epochs = 2." in said
    assert "the best comes to test_loss 0.25." in said
    assert "Best by" not in said  # by its trials, which were not all judged by the same
    assert "2 complete: worse than the median 0.2 2 0.9 best 1 2 1.5" in said  # the best trial is the first line
    assert [axis["name"] for axis in drawn["axes"]] == ["client.epochs", "client.lr"]
    assert [(line["name"], line["values"], line["outcome"], line["state"]) for line in drawn["lines"]] == [
        ("trial 0", [3, 0.1], 0.8, "complete"),
        ("trial 1", [1, 0.3], None, "pruned"),
        ("trial 2", [2, 0.2], 0.9, "complete"),
    ]
    assert drawn["importance"] == {"client.lr": 0.25, "client.epochs": 0.75}


@pytest.mark.parametrize("text", ["client,loss\n0\n", "client,loss\n0,bad\n", "client,loss\n0,inf\n", 'client\n"0'])
def test_a_table_of_clients_that_no_run_has_written_is_said_in_a_line(tmp_path, text):
    run = write(tmp_path / "a", [0.1, 0.5])
    (run / "clients.csv").write_text(text)
    with pytest.raises(FedsimError, match=r"clients = .*clients\.csv: no run has written this"):
        page(compare([run]))


def test_a_page_is_written_whole_from_a_comparison_and_from_a_result(tmp_path):
    comparison = compare([write(tmp_path / "a", [0.1, 0.5])])
    comparison.report(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == page(comparison)
    with pytest.raises(FedsimError, match="cannot write"):
        write_page(comparison, tmp_path / "absent" / "page.html")


def test_a_page_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(parts.importlib.util, "find_spec", lambda name: None)
    parts._plotly.cache_clear()
    with pytest.raises(FedsimError, match="pip install --force-reinstall plotly"):
        page(compare([write(tmp_path / "a", [0.1, 0.5])]))
