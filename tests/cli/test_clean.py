"""What is taken away of runs, and what never is."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from fedsim.cli.main import main
from fedsim.core.errors import InputError
from fedsim.running.cleaning import removable, remove
from fedsim.running.folder import RunFolder
from fedsim.running.stored import StoredRun

CHECKPOINT = f"00000002-{'ab' * 16}.safetensors"
OURS = {"name": "digits", "seed": 0, "versions": {"fedsim": "0.1.0"}}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedsim", "clean", *arguments])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def write(path: Path, status: str, config: Any = OURS) -> Path:
    """A run with checkpoints, a half-written file, and files of others."""
    with RunFolder.create(path, "x") as folder:
        folder.write_config(config)
        folder.append({"round": 1})
        if status not in ("interrupted", "failed"):
            folder.write_summary({"status": status})
        if status == "failed":
            folder.write_traceback("Traceback")
        folder.write_text("clients.csv", "client\n")
    (path / "checkpoints").mkdir()
    for name in (CHECKPOINT, f".{CHECKPOINT}.7.tmp", "notes.txt"):
        (path / "checkpoints" / name).write_bytes(b"1234")
    (path / ".model.safetensors.7.tmp").write_bytes(b"12")
    (path / "thesis.tex").write_text("mine")
    return path


def tree(root: Path) -> set[str]:
    """All files, and folders that are empty."""
    empty = {path for path in root.rglob("*") if path.is_dir() and not path.is_symlink() and not any(path.iterdir())}
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path in empty}


RESTS = {
    "finished": {"config.toml", "metrics.jsonl", "summary.json", "clients.csv"},
    "interrupted": {"config.toml", "metrics.jsonl", "clients.csv", f"checkpoints/{CHECKPOINT}"},
    "failed": {"config.toml", "metrics.jsonl", "clients.csv", "traceback.txt", f"checkpoints/{CHECKPOINT}"},
}
OTHERS = {"thesis.tex", "checkpoints/notes.txt"}
"""What is not a run's is never removed."""


@pytest.mark.parametrize("status", RESTS)
def test_checkpoints_go_when_a_run_has_ended_and_half_files_in_any_case(status, monkeypatch, capsys, tmp_path):
    run = write(tmp_path / "runs" / "a", status)
    before = tree(run)
    assert call(monkeypatch, str(tmp_path)) == 0
    assert "nothing was removed; --yes" in capsys.readouterr().out
    assert tree(run) == before
    assert call(monkeypatch, str(tmp_path), "--yes") == 0
    assert tree(run) == RESTS[status] | OTHERS
    assert call(monkeypatch, str(tmp_path), "--yes") == 0
    assert capsys.readouterr().out.endswith("nothing is to be removed\n")


@pytest.mark.parametrize(("flag", "status"), [("--failed", "failed"), ("--interrupted", "interrupted")])
def test_whole_runs_go_where_that_is_asked_for(flag, status, monkeypatch, tmp_path):
    for name in ("finished", "failed", "interrupted"):
        write(tmp_path / "runs" / name, name)
    run = tmp_path / "runs" / status
    (run / "thesis.tex").unlink()
    (run / "checkpoints" / "notes.txt").unlink()
    assert call(monkeypatch, str(tmp_path), flag, "--yes") == 0
    assert not run.exists()
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"finished", "failed", "interrupted"} - {status}


def test_files_of_others_keep_the_folder_of_a_run(monkeypatch, tmp_path):
    run = write(tmp_path / "a", "failed")
    assert call(monkeypatch, str(tmp_path), "--failed", "--yes") == 0
    assert tree(run) == OTHERS


def test_groups_that_are_empty_then_go_with_their_runs_up_to_what_was_named(monkeypatch, tmp_path):
    run = RunFolder.create(tmp_path / "runs" / "sweep-0" / "digits" / "lr=1" / "seed-0", "x")
    run.write_config(OURS)
    assert call(monkeypatch, str(tmp_path / "runs"), "--interrupted", "--yes") == 0
    assert tree(tmp_path) == {"runs"}
    with RunFolder.create(tmp_path / "runs" / "a", "x") as alone:
        alone.write_config(OURS)
    assert call(monkeypatch, str(tmp_path / "runs" / "a"), "--interrupted", "--yes") == 0
    assert tree(tmp_path) == {"runs"}


def test_a_run_that_goes_on_is_not_touched(monkeypatch, tmp_path):
    run = write(tmp_path / "a", "interrupted")
    before = tree(run)
    with RunFolder.reopen(run):
        assert call(monkeypatch, str(tmp_path), "--interrupted", "--yes") == 0
        assert tree(run) == before


def test_a_run_that_has_gone_on_since_it_was_listed_is_not_touched(tmp_path):
    run = write(tmp_path / "a", "interrupted")
    found = removable(StoredRun(run), ["interrupted"])
    assert found is not None
    before = tree(run)
    with RunFolder.reopen(run), pytest.raises(InputError, match="another process is writing"):
        remove(found, [tmp_path])
    os.utime(run / "metrics.jsonl", ns=(0, found.seen + 1))
    with pytest.raises(InputError, match="has gone on with this run"):
        remove(found, [tmp_path])
    assert tree(run) == before


def test_what_no_run_has_written_stays(monkeypatch, tmp_path):
    """Whatever it is called: a site of one's own has a config.toml, too."""
    write(tmp_path / "site-0", "failed", {"title": "my site"})
    write(tmp_path / "b", "failed")
    (tmp_path / "b" / "config.toml").write_text("name = ")
    before = tree(tmp_path)
    assert call(monkeypatch, str(tmp_path), "--failed", "--interrupted", "--yes") == 0
    assert tree(tmp_path) == before


def test_links_are_not_followed(monkeypatch, capsys, tmp_path):
    real = write(tmp_path / "elsewhere" / "real", "failed")
    linked = write(tmp_path / "runs" / "linked", "finished")
    for path in (linked / "checkpoints").iterdir():
        path.unlink()
    (linked / "checkpoints").rmdir()
    (linked / "checkpoints").symlink_to(real / "checkpoints")
    (linked / "trace.json").symlink_to(real / "clients.csv")
    (tmp_path / "runs" / "again").symlink_to(real)
    before = tree(real)
    assert call(monkeypatch, str(tmp_path / "runs"), "--failed", "--yes") == 0
    (linked / "traceback.txt").write_text("Traceback")
    (linked / "summary.json").unlink()
    assert call(monkeypatch, str(tmp_path / "runs"), "--failed", "--yes") == 0
    assert tree(real) == before
    assert tree(linked) == {"thesis.tex"}
    assert (linked / "checkpoints").is_symlink()
    assert call(monkeypatch, str(tmp_path / "runs" / "again"), "--failed", "--yes") == 2
    assert "no link to it" in capsys.readouterr().err


def test_empty_folders_go_where_runs_are_numbered(monkeypatch, tmp_path):
    write(tmp_path / "runs" / "digits-0", "finished")
    for name in ("runs/digits-1", "runs/mine", "assets", "other/part-1"):
        (tmp_path / name).mkdir(parents=True)
    assert call(monkeypatch, str(tmp_path), "--yes") == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"digits-0", "mine"}
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "assets", "other"}
    assert (tmp_path / "other" / "part-1").is_dir()


def test_only_what_is_older_goes(monkeypatch, capsys, tmp_path):
    young, old = write(tmp_path / "young", "finished"), write(tmp_path / "old", "finished")
    then = time.time() - 8 * 86400
    os.utime(old / "metrics.jsonl", (then, then))
    before = tree(young)
    assert call(monkeypatch, str(tmp_path), "--older", "1w", "--yes") == 0
    assert (tree(young), tree(old)) == (before, RESTS["finished"] | OTHERS)
    assert call(monkeypatch, str(tmp_path), "--older", "soon") == 2
    assert "older = soon" in capsys.readouterr().err


@pytest.mark.parametrize("sure", [True, False])
def test_on_a_terminal_it_asks(sure, monkeypatch, capsys, tmp_path):
    run = write(tmp_path / "a", "finished")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    asked: list[str] = []
    monkeypatch.setattr(typer, "confirm", lambda text, **_: (asked.append(text), sure)[1])
    assert call(monkeypatch, str(tmp_path)) == 0
    assert asked == ["Remove this?"]
    assert "1 checkpoint, half-written files" in capsys.readouterr().out
    assert (tree(run) == RESTS["finished"] | OTHERS) == sure


def test_a_script_has_an_object_for_each_folder(monkeypatch, capsys, tmp_path):
    run = write(tmp_path / "digits-0", "finished")
    (tmp_path / "digits-1").mkdir()
    assert call(monkeypatch, str(tmp_path), "--json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    half = [str(run / ".model.safetensors.7.tmp"), str(run / "checkpoints" / f".{CHECKPOINT}.7.tmp")]
    assert (first["what"], first["size"], first["removed"]) == ("1 checkpoint, half-written files", 10, False)
    assert first["files"] == [str(run / "checkpoints" / CHECKPOINT), *half]
    assert second == {"folder": str(tmp_path / "digits-1"), "what": "empty", "files": [], "size": 0, "removed": False}
    assert call(monkeypatch, str(tmp_path), "--json", "--yes") == 0
    assert all(json.loads(line)["removed"] for line in capsys.readouterr().out.splitlines())
    assert not (tmp_path / "digits-1").exists()


def test_what_cannot_be_removed_is_said_and_the_rest_goes(monkeypatch, capsys, tmp_path):
    write(tmp_path / "a", "finished")
    other = write(tmp_path / "b", "finished")
    unlink = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path.parts[-3:-1] == ("a", "checkpoints"):
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    assert call(monkeypatch, str(tmp_path), "--yes") == 1
    assert f"cannot write {tmp_path / 'a'}: permission denied" in capsys.readouterr().err
    assert tree(other) == RESTS["finished"] | OTHERS
