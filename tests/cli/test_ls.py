"""Runs in a line each."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedsim.cli.ls import age
from fedsim.cli.main import main
from fedsim.core.errors import InputError
from fedsim.reports.listing import listed, ordered, read
from fedsim.running.folder import RunFolder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedsim", *arguments])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def write(
    folder: Path,
    accuracies: tuple[float, ...] = (),
    status: str | None = "stopped",
    ago: float = 60.0,
    **config: Any,
) -> Path:
    """A run of a round for each of these accuracies, that ended so long ago."""
    folder.mkdir(parents=True)
    told = {"name": "digits", "seed": 0, "rounds": 4, **config, "versions": {"fedsim": "0.1.0"}}
    (folder / "config.toml").write_text(tomli_w.dumps(told))
    rows = [{"round": n, "time": 2.0 * n, "wall": 1.0, "test_accuracy": a} for n, a in enumerate(accuracies, 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    if status is not None:
        best = max(accuracies, default=0.0)
        measured = {"test_accuracy": accuracies[-1], "best_test_accuracy": best} if accuracies else {}
        measured |= {"best_test_accuracy_round": accuracies.index(best) + 1} if accuracies else {}
        summary = {"status": status, "reason": "", "rounds": len(rows), "time": 2.0 * len(rows), **measured}
        (folder / "summary.json").write_text(json.dumps(summary))
    now = time.time() - ago
    for path in folder.iterdir():
        os.utime(path, (now, now))
    return folder


def test_a_run_in_a_few_numbers(tmp_path):
    folder = write(tmp_path / "a", (0.25, 0.75, 0.5), ago=0.0)
    found = read(folder)
    assert (found.status, found.rounds, found.asked, found.time) == ("stopped", 3, 4, 6.0)
    assert (found.measure, found.last, found.best, found.best_round) == ("test_accuracy", 0.5, 0.75, 2)
    assert found.size == sum(path.stat().st_size for path in folder.iterdir())
    assert found.when == (folder / "metrics.jsonl").stat().st_mtime


def test_a_run_that_goes_on_is_read_in_its_rows(tmp_path):
    """And one that was killed; of one that was interrupted the summary is as good, if it is the last."""
    folder = write(tmp_path / "a", (0.25, 0.75, 0.5), status=None)
    assert (read(folder).status, read(folder).best, read(folder).rounds) == ("interrupted", 0.75, 3)
    with RunFolder.reopen(folder) as running:
        running.rewind(running.size, 3)
        running.append({"round": 4, "test_accuracy": 0.875})
        assert (read(folder).status, read(folder).last, read(folder).best_round) == ("running", 0.875, 4)
    stopped = write(tmp_path / "b", (0.5,), status="interrupted")
    (stopped / "metrics.jsonl").chmod(0o600)
    assert (read(stopped).status, read(stopped).last) == ("interrupted", 0.5)
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "test_accuracy": 0.625}\n')
    os.utime(stopped / "metrics.jsonl")
    assert (read(stopped).rounds, read(stopped).last) == (2, 0.625)


def test_the_rows_of_runs_that_have_ended_are_not_read(tmp_path, monkeypatch):
    folder = write(tmp_path / "a", (0.5,))
    monkeypatch.setattr("fedsim.running.stored.read_rows", pytest.fail)
    assert read(folder).best == 0.5


DAMAGES = {
    "config.toml": ("name = ", "is not TOML"),
    "summary.json": ("{", "is not as the run has written it"),
    "metrics.jsonl": ("x\n{}\n", "line 1 is not JSON"),
}


@pytest.mark.parametrize("file", DAMAGES)
def test_a_damaged_run_is_named_and_ends_no_listing(file, monkeypatch, capsys, tmp_path):
    text, fault = DAMAGES[file]
    write(tmp_path / "runs" / "bad", (0.25,), status="interrupted")
    if file == "metrics.jsonl":
        (tmp_path / "runs" / "bad" / "summary.json").unlink()
    (tmp_path / "runs" / "bad" / file).write_text(text)
    write(tmp_path / "runs" / "good", (0.5,))
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "ls", "--sort", "name") == 0
    said = capsys.readouterr().out
    assert re.search(r"runs/bad +damaged", said)
    assert re.search(r"runs/good +stopped .* 1/4 +0.5000 +0.5000", said)
    assert re.search(rf"damaged: runs/bad/{file}: .*{fault}", said)


def test_a_folder_that_cannot_be_read_ends_no_listing(tmp_path, monkeypatch):
    write(tmp_path / "b", (0.5,))
    (tmp_path / "a").mkdir()
    scan = os.scandir

    def refused(path: Path) -> Any:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    found = listed([tmp_path])
    assert [(run.folder.name, run.status) for run in found] == [("a", "damaged"), ("b", "stopped")]
    assert found[0].fault == f"{tmp_path / 'a'}: cannot be read: permission denied"


def test_runs_are_found_once_where_they_are_and_not_through_links(tmp_path):
    deep = write(tmp_path / "sweep-0" / "digits" / "lr=1" / "seed-0", (0.5,))
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "file").write_text("")
    assert [run.folder for run in listed([tmp_path, deep])] == [deep]
    with pytest.raises(InputError, match="there is no such folder"):
        listed([tmp_path / "absent"])


def test_runs_are_put_in_order(tmp_path):
    write(tmp_path / "a", (0.5,), ago=30.0)
    write(tmp_path / "b", (0.75,), ago=20.0)
    write(tmp_path / "c", (), ago=10.0)
    write(tmp_path / "d", (0.25,), ago=40.0)
    runs = listed([tmp_path])
    orders = {by: "".join(run.folder.name for run in ordered(runs, by)) for by in ("when", "best", "name")}
    assert orders == {"when": "cbad", "best": "badc", "name": "abcd"}
    with pytest.raises(InputError, match="did you mean best"):
        ordered(runs, "bes")


def test_what_is_better_lower_is_best_where_it_is_low(tmp_path):
    for name, value in (("a", 2.0), ("b", 1.0)):
        folder = write(tmp_path / name, status=None)
        (folder / "metrics.jsonl").write_text(f'{{"round": 1, "value": {value}}}\n{{"round": 2, "value": 3.0}}\n')
    runs = ordered(listed([tmp_path]), "best")
    assert [(run.folder.name, run.best, run.higher_is_better) for run in runs] == [("b", 1.0, False), ("a", 2.0, False)]


def test_seeds_are_one_line_or_one_each(monkeypatch, capsys, tmp_path):
    for seed, accuracy in enumerate((0.5, 0.7)):
        write(tmp_path / "group" / f"seed-{seed}", (accuracy,), status=("diverged", "stopped")[seed], seed=seed)
    assert call(monkeypatch, "ls", str(tmp_path)) == 0
    said = capsys.readouterr().out
    # Mean 0.6, deviation sqrt(2 * 0.1^2 / 1) = 0.1414.
    assert re.search(r"group +2 +1 stopped, 1 diverged +1 min +1/4 +0\.6000 ± 0\.1414", said)
    assert "last, best: test_accuracy; ±: one sample standard deviation over the seeds" in said
    assert call(monkeypatch, "ls", str(tmp_path), "--each", "--status", "stopped") == 0
    said = capsys.readouterr().out
    assert "seed-0" not in said
    assert re.search(r"group/seed-1 +stopped", said)


def test_a_script_has_an_object_a_run(monkeypatch, capsys, tmp_path):
    write(tmp_path / "a", (0.25, 0.5), ago=time.time() - 1e9, duration=30.0)
    write(tmp_path / "b", status="failed")
    assert call(monkeypatch, "ls", str(tmp_path), "--json", "--sort", "name") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["folder"], first["when"]) == (str(tmp_path / "a"), "2001-09-09T01:46:40+00:00")
    assert (first["rounds"], first["asked"], first["time"], first["duration"]) == (2, 4, 4.0, 30.0)
    assert (first["last"], first["best"], first["best_round"]) == (0.5, 0.5, 2)
    assert (second["status"], second["measure"]) == ("interrupted", None)


def test_without_runs_nothing_is_listed_and_a_wrong_status_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "ls") == 0
    assert capsys.readouterr().out == "no run is there\n"
    assert call(monkeypatch, "ls", "--json") == 0
    assert capsys.readouterr().out == ""
    assert call(monkeypatch, "ls", "--status", "finishd") == 2
    assert "did you mean finished" in capsys.readouterr().err


def test_a_name_that_means_ill_is_listed(monkeypatch, capsys, tmp_path):
    write(tmp_path / "\x1b]0;pwned\x07[bold]\nb\u202e", (0.5,))
    for form in ([], ["--json"]):
        assert call(monkeypatch, "ls", str(tmp_path), *form) == 0
        said = capsys.readouterr().out
        assert said.replace("\n", "").isprintable()
        assert "pwned" in said


@pytest.mark.parametrize(
    ("seconds", "said"), [(-3.0, "0 s"), (59.0, "59 s"), (61.0, "1 min"), (7200.0, "2 h"), (200_000.0, "2 d")]
)
def test_an_age_is_said_in_a_few_letters(seconds, said):
    assert age(seconds) == said
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", age(4e6))
