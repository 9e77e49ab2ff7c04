"""Runs in a browser while they go on: what is shown, to whom, and that nothing is read twice or from elsewhere."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import time
from collections.abc import MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import quote, unquote
from urllib.request import urlopen

import pytest

from fedsim.core.errors import InputError
from fedsim.core.terminal import printable
from fedsim.reports.listing import Listed
from fedsim.reports.watching import app as watching
from fedsim.reports.watching.app import Hosts, Watch
from fedsim.reports.watching.index import Row
from fedsim.reports.watching.pages import Pages
from fedsim.reports.watching.serve import hosts_of, serve
from fedsim.reports.watching.shelf import Line, Search, Shelf
from fedsim.running.folder import RunFolder

HERE = Hosts()
BOLD = "<b>bold</b>\x1b[31m\n\"'?#%2e%2e"


def run(path: Path, rows: int = 3, *, ended: bool = True, seed: int = 0) -> Path:
    """A run whose accuracy is 0.1 after its first round, 0.2 after the second and so on, and is 0 after the last."""
    with RunFolder.create(path, "x") as folder:
        folder.write_config({"name": "x", "seed": seed, "rounds": 10, "resolved": {}})
        for number in range(1, rows + 1):
            folder.append({"round": number, "time": 1.0 * number, "test_accuracy": number / 10 * (number < rows)})
        if ended:
            best = {"test_accuracy": 0.0, "best_test_accuracy": (rows - 1) / 10, "best_test_accuracy_round": rows - 1}
            folder.write_summary({"status": "stopped", "reason": "", "rounds": rows, "time": 1.0 * rows} | best)
    return path


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str


class Browser:
    """Asks an application without a network. drawn: the runs of each page that was made, which says just these."""

    def __init__(self, root: Path, hosts: Hosts = HERE) -> None:
        self.drawn: list[str] = []
        self._app = Watch(Shelf(root), self._draw, hosts)

    def _draw(self, lines: Sequence[Line], search: Search | None) -> str:
        self.drawn.append(" ".join([line.place for line in lines] + ([] if search is None else [search.folder.name])))
        return printable(self.drawn[-1])

    def ask(self, target: str, *headers: tuple[str, str], method: str = "GET", host: str = "127.0.0.1:8080") -> Answer:
        """The answer to a request whose target is not tidied, as a browser would."""
        return asyncio.run(self._ask(target, [("host", host), *headers], method))

    async def _ask(self, target: str, headers: Sequence[tuple[str, str]], method: str) -> Answer:
        raw, _, query = target.encode().partition(b"?")
        given = [(name.lower().encode(), value.encode()) for name, value in headers]
        scope = {"type": "http", "method": method, "path": unquote(raw.decode()), "raw_path": raw, "headers": given}
        said: list[MutableMapping[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            said.append(message)

        await self._app(scope | {"query_string": query, "scheme": "http", "server": ("127.0.0.1", 8080)}, receive, send)
        told = {name.decode(): value.decode() for name, value in said[0]["headers"]}
        return Answer(said[0]["status"], told, b"".join(part["body"] for part in said[1:]).decode())


def test_the_list_says_what_there_is(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "begun", 2, ended=False)
    for seed in (0, 1):
        run(tmp_path / "sweep-0" / "x" / "lr=1" / f"seed-{seed}", seed=seed)
    lines = {line.place: line for line in Shelf(tmp_path).lines()}
    assert [*lines] == ["begun", "sweep-0/x/lr=1/seed-0", "sweep-0/x/lr=1/seed-1", "whole"]
    runs = [line.run for line in lines.values()]
    said = [(run.status, run.rounds, run.asked, run.measure, run.last, run.best) for run in runs]
    assert said[0] == ("interrupted", 2, 10, "test_accuracy", 0.0, 0.1)
    assert said[3] == ("stopped", 3, 10, "test_accuracy", 0.0, 0.2)
    text = Browser(tmp_path).ask("/").text
    assert "4 runs: 1 interrupted, 3 stopped" in text
    for place in ("whole", "begun", "sweep-0", "sweep-0/x/lr%3D1", "sweep-0/x/lr%3D1/seed-1"):
        assert f'href="/runs/{place}"' in text
    assert text.index("/runs/sweep-0") < text.index("/runs/begun") < text.index("/runs/whole")  # the newest first


def test_progress_is_towards_the_end_that_is_nearer():
    run = Listed(Path(), "running", rounds=3, asked=10, time=8.0, duration=16.0)
    assert Row("", "", run).progress == "8 of 16"
    assert Row("", "", replace(run, rounds=9)).progress == "9 of 10"
    assert Row("", "", replace(run, asked=None, duration=None)).progress == "3"


def test_an_address_is_a_run_or_all_below_a_folder(tmp_path):
    for place in ("a", "ab", "s/a", "s/b"):
        run(tmp_path / place)
    browser = Browser(tmp_path)
    assert browser.ask("/runs/a").text == "a"
    assert browser.ask("/runs/s").text == browser.ask("/runs/s/").text == "s/a s/b"
    assert browser.ask("/runs/").text == "a ab s/a s/b"
    assert browser.ask("/compare?run=ab&run=s/b&run=c").text == "ab s/b"
    for nothing in ("/runs/c", "/runs/a/a", "/compare", "/compare?run=c", "/a", "/run", "/runs"):
        assert browser.ask(nothing).status == 404, nothing


def test_a_search_is_shown_with_all_of_its_runs(tmp_path):
    for place in ("tune-0/trial-0/seed-0", "tune-0/trial-1/seed-0", "b"):
        run(tmp_path / place)
    browser, runs = Browser(tmp_path), "tune-0/trial-0/seed-0 tune-0/trial-1/seed-0"
    tag = browser.ask("/runs/tune-0").headers["etag"]
    (tmp_path / "study.json").symlink_to(tmp_path / "b" / "summary.json")
    (tmp_path / "tune-0" / "study.json").write_text("{}")
    assert browser.ask("/runs/tune-0", ("if-none-match", tag)).text == f"{runs} tune-0"
    assert browser.ask("/runs/tune-0/trial-0").text == "tune-0/trial-0/seed-0"
    assert browser.ask("/compare?run=tune-0/trial-0/seed-0&run=tune-0/trial-1/seed-0").text == runs
    assert browser.ask("/runs/").text == f"b {runs}"  # no link is followed
    served = Watch(Shelf(tmp_path), Pages().draw, HERE)
    browser._app = served
    answer = browser.ask("/runs/tune-0")
    assert answer.status == 503
    assert "no search has written this" in answer.text


def test_nothing_but_what_was_found_is_read(tmp_path, monkeypatch):
    run(tmp_path / "runs" / "a")
    run(tmp_path / "secret")
    (tmp_path / "runs" / "out").symlink_to(tmp_path / "secret")
    linked = run(tmp_path / "runs" / "linked", ended=False)
    (linked / "metrics.jsonl").rename(tmp_path / "secret" / "rows")
    (linked / "metrics.jsonl").symlink_to(tmp_path / "secret" / "rows")
    browser = Browser(tmp_path / "runs")
    text = browser.ask("/").text
    assert "metrics.jsonl is a link" in text
    assert "secret" not in text
    assert "/runs/out" not in text
    for path in (
        "../secret",
        "%2e%2e/secret",
        "a/../../secret",
        "..%2fsecret",
        "/etc/passwd",
        "out",
        "a%00",
        "\\..\\b",
    ):
        assert browser.ask(f"/runs/{path}").status == 404, path


@pytest.mark.parametrize("hosts", [Hosts(), hosts_of("127.0.0.1", "127.0.0.1")])
def test_another_name_is_refused(hosts, tmp_path):
    """A page of elsewhere whose name has been turned to this machine asks with its own name."""
    browser = Browser(tmp_path, hosts)
    for own in ("127.0.0.1:8080", "localhost:9000", "LOCALHOST", "[::1]:8080"):
        assert browser.ask("/", host=own).status == 200, own
    for other in ("evil.example:8080", "127.0.0.1.evil.example", "10.0.0.1", "", "[::1", "localhost:8080@evil.example"):
        answer = browser.ask("/", host=other)
        assert (answer.status, answer.text.count("\n")) == (421, 1), other
    assert browser.ask("/", ("host", "localhost")).status == 421  # it is named twice


def test_who_listens_for_others_is_called_by_his_addresses():
    everywhere = hosts_of("0.0.0.0", "0.0.0.0")
    assert everywhere.has(["10.0.0.1:8080"])
    assert not everywhere.has(["evil.example:8080"])
    one = hosts_of("Mine.example", "10.0.0.1")
    assert one.has(["mine.example:80"])
    assert one.has(["10.0.0.1"])
    assert not one.has(["10.0.0.2"])


def test_it_only_shows(tmp_path):
    run(tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    browser = Browser(tmp_path)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        answer = browser.ask("/runs/a", method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD"), method
    head = browser.ask("/runs/a", method="HEAD")
    assert (head.status, head.text, head.headers["content-length"]) == (200, "", "1")
    for place in ("/", "/runs/a", "/nothing"):
        answer = browser.ask(place, ("origin", "http://evil.example"))
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def test_names_are_texts(tmp_path):
    run(tmp_path / BOLD.replace("/", ""))
    os.makedirs(os.fsencode(tmp_path) + b"/\xff")
    for file in ("config.toml", "metrics.jsonl"):
        shutil.copy(next(tmp_path.glob("<*")) / file, os.fsencode(tmp_path) + b"/\xff/" + os.fsencode(file))
    browser = Browser(tmp_path)
    text = browser.ask("/").text
    assert "<b>" not in text
    assert "\x1b" not in text
    assert browser.ask("/runs/%ff").text == "\\udcff"
    key = next(line.key for line in Shelf(tmp_path).lines() if line.place != "\udcff")
    assert f'href="/runs/{key}"' in text
    assert browser.ask(f"/runs/{key}").status == 200
    assert browser.ask(f"/compare?run={quote(key)}").status == 200


def test_what_has_not_changed_costs_nothing(tmp_path, monkeypatch):
    path = run(tmp_path / "a", ended=False)
    monkeypatch.setattr(watching, "PAUSE", 0)
    browser = Browser(tmp_path)
    for place in ("/", "/runs/a"):
        first = browser.ask(place)
        same = browser.ask(place, ("if-none-match", first.headers["etag"]))
        assert (same.status, same.text) == (304, ""), place
        assert browser.ask(place).text == first.text
    assert browser.drawn == ["a"]
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"round": 4, "test_accuracy": 0.9}\n')
    for place in ("/", "/runs/a"):
        assert browser.ask(place, ("if-none-match", first.headers["etag"])).status == 200, place
    assert browser.drawn == ["a", "a"]


def test_a_run_whose_process_is_gone_is_seen_though_no_file_has_changed(tmp_path):
    browser = Browser(tmp_path)
    with RunFolder.reopen(run(tmp_path / "a", ended=False)):
        first = browser.ask("/")
        assert "1 run: 1 running" in first.text
    assert "1 run: 1 interrupted" in browser.ask("/", ("if-none-match", first.headers["etag"])).text


def test_a_page_that_takes_long_is_not_made_again_at_once(tmp_path, monkeypatch):
    path = run(tmp_path / "a", ended=False)
    monkeypatch.setattr(watching, "PAUSE", 1e9)
    browser = Browser(tmp_path)
    tag = browser.ask("/runs/a").headers["etag"]
    (path / "metrics.jsonl").write_bytes(b'{"round": 1}\n')
    assert browser.ask("/runs/a", ("if-none-match", tag)).status == 304
    assert browser.drawn == ["a"]


def test_what_is_damaged_is_said_in_a_line(tmp_path, monkeypatch):
    run(tmp_path / "a", ended=False)
    browser = Browser(tmp_path)
    for name, text in {"b": "[[", "c": "seed = 0", "d": 'name = "x"'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text(text)
    (tmp_path / "c" / "metrics.jsonl").write_text('{"round": 1}\n[1]\n{"round": 2')
    (tmp_path / "a" / "metrics.jsonl").chmod(0o644)
    text = browser.ask("/").text
    assert "is not TOML" in text
    shutil.rmtree(tmp_path)
    answer = browser.ask("/")
    assert answer.status == 200
    assert "no such file or directory" in answer.text
    assert browser.ask("/runs/a").status == 404


def test_more_rows_than_can_be_read_again_and_again_are_refused(tmp_path, monkeypatch):
    run(tmp_path / "a")
    monkeypatch.setattr(watching, "MOST", 10)
    answer = Browser(tmp_path).ask("/runs/a")
    assert answer.status == 503
    assert "fedsim report" in answer.text


def test_a_long_run_is_read_in_steps_in_which_others_are_answered(tmp_path, monkeypatch):
    monkeypatch.setattr("fedsim.reports.tail.STEP", 100)
    run(tmp_path / "a", 9, ended=False)
    shelf = Shelf(tmp_path)
    looks = [shelf.lines()[0].run for _ in range(6)]
    assert [look.status for look in looks] == ["interrupted"] * 6
    assert [look.best for look in looks] == [None] * 4 + [0.8] * 2
    monkeypatch.setattr("fedsim.reports.watching.shelf.read", pytest.fail)
    assert shelf.lines()[0].run == looks[-1]  # nothing has changed


def test_where_nothing_can_listen_is_said(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        serve(tmp_path / "nothing", "127.0.0.1", 0)
    with pytest.raises(InputError, match="no name or address"):
        serve(tmp_path, "nowhere.invalid", 0)


def test_others_are_warned_of(tmp_path, capsys):
    serve(tmp_path, "127.0.0.1", 0).listening.close()
    assert capsys.readouterr().err == ""
    served = serve(tmp_path, "0.0.0.0", 0)
    served.listening.close()
    assert f"whoever reaches {served.address[7:-1]} reads" in capsys.readouterr().err


def test_a_server_answers_while_others_dawdle_and_ends_at_once_by_ctrl_c(tmp_path, capfd, caplog, monkeypatch):
    """All that is not answered when it ends is let go: half a request, and one for a page that is never done."""
    done = Event()
    monkeypatch.setattr(Pages, "draw", lambda *given: str(done.wait(60)))
    run(tmp_path / "a")
    served = serve(tmp_path, "127.0.0.1", 0)
    port = int(served.address.rstrip("/").rpartition(":")[2])
    with pytest.raises(InputError, match=f"port = {port}: 127.0.0.1 has it not: address already in use; choose"):
        serve(tmp_path, "127.0.0.1", port)
    told: list[Any] = []

    def ask() -> None:
        with ExitStack() as slow:
            try:
                for _ in range(40):
                    half = slow.enter_context(socket.create_connection(("127.0.0.1", port)))
                    half.sendall(b"GET / HTTP/1.1\r\nHo")
                for text in (
                    b"\x00\xff\r\n\r\n",
                    b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
                    b"GET / HTTP/1.0\r\n\r\n",
                ):
                    with socket.create_connection(("127.0.0.1", port)) as one:
                        one.sendall(text)
                        told.append(one.recv(12))
                waiting = slow.enter_context(socket.create_connection(("127.0.0.1", port)))
                waiting.sendall(b"GET /runs/a HTTP/1.1\r\nHost: localhost\r\n\r\n")
                with urlopen(served.address) as answer:
                    told.append(answer.status)
            finally:
                told.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)

    asking = Thread(target=ask)
    asking.start()
    served.run()
    ended = time.monotonic()
    done.set()
    asking.join()
    assert told[:4] == [b"HTTP/1.1 400", b"HTTP/1.1 421", b"HTTP/1.1 421", 200]
    assert ended - told[4] < 2
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""
