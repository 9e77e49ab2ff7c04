"""The run folder: nothing is overwritten, nothing is half-written, and a full disk is one line."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fedsim.core.errors import InputError
from fedsim.core.files import GoneError, StorageError, write_whole
from fedsim.running.folder import RunFolder
from fedsim.running.history import History
from fedsim.running.stored import CHECKPOINTS, CURVES, FILES, METRICS, open_run

WHOLE = f"00000002-{'ab' * 16}.safetensors"
"""The name of a checkpoint."""


OURS = {"name": "x", "versions": {"fedsim": "0.1.0"}}
"""Of a config.toml that a run has written."""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A finished run with every file, and one file of the user's."""
    path = tmp_path / "earlier"
    with RunFolder.create(path, "x") as folder:
        folder.write_config(OURS)
        folder.append({"round": 1})
        folder.write_summary({"rounds": 1})
        folder.place(CURVES).write_bytes(b"picture")
    (path / "notes.txt").write_text("mine")
    return path


def test_runs_are_numbered_from_the_first_free_number(tmp_path):
    root = tmp_path / "runs"
    paths = [RunFolder.create(None, "digits", root=root).path for _ in range(3)]
    assert paths == [root / "digits-0", root / "digits-1", root / "digits-2"]
    (root / "digits-1").rmdir()
    (root / "digits-3").write_text("a file takes a number too")
    assert RunFolder.create(None, "digits", root=root).path == root / "digits-1"
    assert RunFolder.create(None, "digits", root=root).path == root / "digits-4"
    assert RunFolder.create(None, "other", root=root).path == root / "other-0"


def test_a_folder_that_holds_something_is_refused_and_left_alone(earlier):
    before = contents(earlier)
    for refuse in (RunFolder.check, RunFolder.create):
        with pytest.raises(InputError, match="this folder exists; choose another or pass --force"):
            refuse(earlier, "x")
    assert contents(earlier) == before


def test_an_empty_folder_is_taken(tmp_path):
    assert RunFolder.create(tmp_path, "x").path == tmp_path


def test_force_replaces_the_run_and_nothing_else(earlier):
    folder = RunFolder.create(earlier, "x", force=True)
    # Nothing is lost yet: a later check may still refuse the new run.
    assert contents(earlier).keys() == {"config.toml", METRICS, "summary.json", CURVES, "notes.txt"}
    folder.write_config({"name": "new"})
    assert contents(earlier) == {"config.toml": b'name = "new"\n', "notes.txt": b"mine"}
    folder.append({"round": 7})
    folder.append({"round": 8})
    folder.close()
    assert folder.rows() == [{"round": 7}, {"round": 8}]
    assert folder.config() == {"name": "new"}


def test_force_then_discard_before_a_write_keeps_the_earlier_run(earlier):
    before = contents(earlier)
    RunFolder.create(earlier, "x", force=True).discard()
    assert contents(earlier) == before


@pytest.mark.parametrize("name", ["config.toml", "model.safetensors", "summary.json", METRICS, CURVES])
def test_force_replaces_nothing_that_no_run_has_written(tmp_path, name):
    """Be it called as files of runs are: a config.toml or a model is what many programs write."""
    (tmp_path / name).write_text("title = 'not ours'")
    (tmp_path / "thesis.tex").write_text("mine")
    before = contents(tmp_path)
    for refuse in (RunFolder.check, RunFolder.create):
        with pytest.raises(InputError, match=f"no run has written {name} there, and only runs are replaced"):
            refuse(tmp_path, "x", force=True)
    assert contents(tmp_path) == before


def test_force_beside_files_of_others_leaves_them(tmp_path):
    (tmp_path / "traceback.txt").write_text("of a point of a sweep that failed before it began")
    (tmp_path / "thesis.tex").write_text("mine")
    folder = RunFolder.create(tmp_path, "x", force=True)
    folder.write_config(OURS)
    folder.discard()
    assert contents(tmp_path).keys() == {"traceback.txt", "thesis.tex"}


def test_force_does_not_replace_a_run_that_is_being_written(earlier):
    before = contents(earlier)
    with RunFolder.reopen(earlier), pytest.raises(InputError, match="another process is writing to it"):
        RunFolder.create(earlier, "x", force=True)
    assert contents(earlier) == before


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_folder_that_is_gone_is_said_at_the_next_row(tmp_path, how):
    folder = RunFolder.create(tmp_path / "run", "x")
    folder.append({"round": 1})
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    if how == "deleted":
        shutil.rmtree(tmp_path / "elsewhere")
    if how == "replaced":
        other = RunFolder.create(tmp_path / "run", "x")
        other.append({"round": 7})
    for action in (folder.hold_present, lambda: folder.append({"round": 2})):
        with pytest.raises(GoneError, match="the run's folder was deleted or moved"):
            action()
    folder.close()
    if how == "replaced":
        assert other.rows() == [{"round": 7}]
        other.close()


def test_a_current_folder_that_is_changed_is_a_cause_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunFolder.create(Path("run"), "x") as folder:
        folder.append({"round": 1})
        monkeypatch.chdir("/")
        with pytest.raises(GoneError, match=r"was deleted or moved, or what runs has changed the current folder$"):
            folder.append({"round": 2})


def test_a_link_is_not_gone_on_with(unfinished, tmp_path):
    """It may lead to a file that no run has written, and which would be cut."""
    (unfinished / METRICS).rename(tmp_path / "mine.txt")
    (unfinished / METRICS).symlink_to(tmp_path / "mine.txt")
    with pytest.raises(InputError, match="cannot go on: too many levels of symbolic links"):
        RunFolder.reopen(unfinished)


def test_what_no_file_can_hold_is_refused_by_its_option(tmp_path):
    with (
        pytest.raises(InputError, match=r"^strategy\.rule = .*: is a builtin_function_or_method, which a run folder"),
        RunFolder.create(tmp_path / "run", "x") as folder,
    ):
        folder.write_config({"name": "x", "strategy": {"kind": "mine", "rule": len, "none": None}})
    assert not (tmp_path / "run").exists()


def test_check_makes_nothing(tmp_path):
    RunFolder.check(tmp_path / "a" / "b", "x")
    RunFolder.check(None, "x", root=tmp_path / "runs")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp", "a\0b", "a\nb"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="it names a folder"):
        RunFolder.create(None, name, root=tmp_path / "runs")
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_too_long_leaves_nothing_behind(tmp_path):
    with pytest.raises(InputError, match="cannot be made: file name too long"):
        RunFolder.create(None, "n" * 300, root=tmp_path / "deep" / "runs")
    assert not list(tmp_path.iterdir())


def test_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="is not a folder"):
            RunFolder.create(out, "x", force=True)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a folder"):
        RunFolder.check(tmp_path / "link", "x")


def test_a_read_only_place_is_refused(tmp_path, monkeypatch):
    # The tests may run as root, whom file modes do not bind; so the answer of the system is replaced.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="cannot be written in"):
        RunFolder.check(tmp_path / "run", "x")


def test_a_full_disk_is_refused_before_the_run(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 100, 0))
    with pytest.raises(InputError, match="no space is left"):
        RunFolder.check(tmp_path / "run", "x")


def test_a_folder_made_by_another_run_in_the_meantime_is_refused(tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(RunFolder, "check", lambda *_, **__: None)
    monkeypatch.setattr(Path, "is_dir", lambda path: path != out)
    out.mkdir()
    with pytest.raises(InputError, match="this folder exists"):
        RunFolder.create(out, "x")
    assert out.exists()


def test_discard_removes_what_was_made(tmp_path):
    folder = RunFolder.create(tmp_path / "a" / "b", "x")
    folder.write_config({"name": "x"})
    folder.discard()
    assert not list(tmp_path.iterdir())


def test_discard_keeps_a_run_that_logged_a_round_and_files_of_others(tmp_path):
    folder = RunFolder.create(tmp_path / "logged", "x")
    folder.append({"round": 1})
    folder.discard()
    assert folder.rows() == [{"round": 1}]
    other = RunFolder.create(tmp_path / "other", "x")
    (other.path / "notes.txt").write_text("mine")
    other.write_config({"name": "x"})
    other.discard()
    assert contents(other.path) == {"notes.txt": b"mine"}


def test_a_refusal_inside_the_with_block_discards_and_another_error_does_not(tmp_path):
    def leave_by(error: BaseException, path: Path) -> None:
        with RunFolder.create(path, "x") as folder:
            folder.write_config({"name": "x"})
            raise error

    with pytest.raises(InputError):
        leave_by(InputError("lr", -1, "make it positive"), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(KeyboardInterrupt):
        leave_by(KeyboardInterrupt(), tmp_path / "b")
    assert open_run(tmp_path / "b").config() == {"name": "x"}


def test_config_leaves_out_what_toml_cannot_say(tmp_path):
    folder = RunFolder.create(tmp_path, "x")
    folder.write_config({"seed": 3, "stop": None, "client": {"lr": 0.1, "steps": None, "path": Path("a/b")}})
    assert tomllib.loads((tmp_path / "config.toml").read_text()) == {
        "seed": 3,
        "client": {"lr": 0.1, "path": "a/b"},
    }


def test_numbers_that_are_not_finite_are_null(tmp_path):
    row = {
        "round": 1,
        "train_loss": float("nan"),
        "a": [float("inf"), 1.5],
        "b": np.float32(2),
        "c": torch.tensor(-np.inf),
    }
    with RunFolder.create(tmp_path, "x") as folder:
        folder.append(row)
        folder.write_summary({"best": {"test_loss": float("-inf")}})
    expected = {"round": 1, "train_loss": None, "a": [None, 1.5], "b": 2.0, "c": None}

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads((tmp_path / METRICS).read_text(), parse_constant=refuse) == expected
    assert json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse) == {"best": {"test_loss": None}}


def test_a_row_can_be_read_as_soon_as_it_is_appended(tmp_path):
    folder = RunFolder.create(tmp_path, "x")
    for number in (1, 2, 3):
        folder.append({"round": number})
        assert [row["round"] for row in open_run(tmp_path).rows()] == list(range(1, number + 1))
    folder.close()
    assert (tmp_path / METRICS).read_text().count("\n") == 3


def test_a_last_line_that_was_cut_off_is_dropped(tmp_path):
    (tmp_path / METRICS).write_bytes(b'{"round": 1}\n{"round": 2}\n{"round": 3, "test_lo')
    assert open_run(tmp_path).rows() == [{"round": 1}, {"round": 2}]
    (tmp_path / METRICS).write_bytes(b'{"round": 1}\n{"rou\n{"round": 3}\n')
    with pytest.raises(InputError, match="line 2 is not JSON"):
        open_run(tmp_path).rows()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the device that is always full")
def test_a_full_disk_is_one_line_and_keeps_what_was_written(tmp_path):
    folder = RunFolder.create(tmp_path / "run", "x")
    folder.append({"round": 1})
    with open("/dev/full", "wb", buffering=0) as full:
        os.dup2(full.fileno(), folder._metrics.fileno())
        with pytest.raises(StorageError, match=r"no space left on device; the 1 rows before it are kept") as caught:
            folder.append({"round": 2})
    assert "\n" not in str(caught.value)
    assert folder.rows() == [{"round": 1}]
    with pytest.raises(StorageError):  # never after a line that may have been cut off
        folder.append({"round": 3})
    folder.close()


def test_a_line_is_written_in_full_even_when_the_system_takes_it_in_parts(tmp_path):
    class Slow:
        def __init__(self) -> None:
            self.taken = b""

        def write(self, data: memoryview) -> int:
            self.taken += bytes(data[:3])
            return min(3, len(data))

    folder = RunFolder.create(tmp_path, "x")
    folder._metrics = slow = Slow()
    folder.append({"round": 1})
    assert slow.taken == b'{"round": 1}\n'


def test_two_runs_in_one_empty_folder_do_not_mix_their_rows(tmp_path):
    with RunFolder.create(tmp_path, "x") as first, RunFolder.create(tmp_path, "x") as second:
        first.append({"round": 1})
        with pytest.raises(StorageError, match="file exists"):
            second.append({"round": 1})
        first.append({"round": 2})
    assert first.rows() == [{"round": 1}, {"round": 2}]


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch, broken):
    folder = RunFolder.create(tmp_path, "x")
    folder.write_summary({"rounds": 1})
    before = contents(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        with pytest.raises(StorageError, match=r"cannot write .*summary.json: no space left on device"):
            folder.write_summary({"rounds": 2})
        with pytest.raises(StorageError):
            folder.write_traceback("a file that was not there")
    assert contents(tmp_path) == before  # neither a part of the new file nor the temporary one


def test_a_folder_that_vanishes_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="no such file or directory"):
        write_whole(tmp_path / "gone" / "picture.png", b"")


def test_the_model_survives_the_disk(tmp_path):
    flat = torch.arange(6.0, requires_grad=True)
    # Slices of one vector and tied weights share memory, which the format refuses as they are.
    tensors = {"weight": flat[:4].reshape(2, 2).T, "bias": flat[4:], "tied": flat[4:]}
    RunFolder.create(tmp_path, "x").write_model(tensors, {"round": "5"})
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"round": "5"}
        assert file.get_tensor("weight").tolist() == [[0.0, 2.0], [1.0, 3.0]]
        assert file.get_tensor("bias").tolist() == file.get_tensor("tied").tolist() == [4.0, 5.0]


def test_only_known_files_have_a_place(tmp_path):
    folder = RunFolder.create(tmp_path, "x")
    assert [folder.place(file) for file in FILES] == [tmp_path / file for file in FILES]
    with pytest.raises(ValueError, match="not a file of a run"):
        folder.place("../elsewhere")


@pytest.fixture
def unfinished(tmp_path) -> Path:
    """A run of three rows with a checkpoint, one that was left half-written, and a file of the user's beside them."""
    path = tmp_path / "unfinished"
    with RunFolder.create(path, "x") as folder:
        folder.write_config(OURS)
        for number in (1, 2, 3):
            folder.append({"round": number})
        folder.write_traceback("why")
        folder.checkpoints.mkdir()
        for name in (WHOLE, f".{WHOLE}.17.tmp", "notes.txt"):
            (folder.checkpoints / name).write_text(name)
    return path


def test_force_removes_checkpoints_with_the_run_and_nothing_beside_them(unfinished):
    folder = RunFolder.create(unfinished, "x", force=True)
    assert len(list((unfinished / CHECKPOINTS).iterdir())) == 3
    folder.write_config({"name": "new"})
    assert [path.name for path in (unfinished / CHECKPOINTS).iterdir()] == ["notes.txt"]
    assert contents(unfinished).keys() == {"config.toml"}


def test_checkpoints_that_are_no_run_s_stay(tmp_path):
    (tmp_path / CHECKPOINTS).mkdir()
    (tmp_path / CHECKPOINTS / "epoch-3.safetensors").write_text("of another program")
    folder = RunFolder.create(tmp_path, "x", force=True)
    folder.write_config({"name": "x"})
    folder.discard()
    assert (tmp_path / CHECKPOINTS / "epoch-3.safetensors").read_text() == "of another program"


@pytest.mark.parametrize(("name", "stays"), [(f".{WHOLE}.17.tmp", False), (WHOLE, True)])
def test_a_run_that_has_a_checkpoint_is_not_discarded(tmp_path, name, stays):
    folder = RunFolder.create(tmp_path / "run", "x")
    folder.write_config({"name": "x"})
    folder.checkpoints.mkdir()
    (folder.checkpoints / name).write_text("")
    assert folder.has_checkpoint == stays
    folder.discard()
    assert (tmp_path / "run").exists() == stays


def test_what_a_run_that_has_ended_leaves_behind_is_removed(unfinished):
    half = [unfinished / f".{name}.17.tmp" for name in ("curves.png", "summary.json", "config.toml")]
    mine = [unfinished / name for name in (".notes.txt.17.tmp", ".curves.png.mine.tmp", "curves.png.17.tmp")]
    for path in half + mine:
        path.write_text("half")
    RunFolder(unfinished).tidy()
    assert [path.name for path in (unfinished / CHECKPOINTS).iterdir()] == ["notes.txt"]
    assert not any(path.exists() for path in half)
    assert all(path.exists() for path in mine)
    (unfinished / CHECKPOINTS / "notes.txt").rename(unfinished / "notes.txt")
    for _ in range(2):
        RunFolder(unfinished).tidy()
        assert not (unfinished / CHECKPOINTS).exists()


def test_nothing_is_tidied_in_a_folder_of_somebody_else(unfinished):
    (unfinished / "config.toml").write_text("name = 'x'")
    (unfinished / ".curves.png.17.tmp").write_text("half")
    RunFolder(unfinished).tidy()
    assert len(list((unfinished / CHECKPOINTS).iterdir())) == 3
    assert (unfinished / ".curves.png.17.tmp").exists()


def test_a_run_that_is_reopened_changes_when_it_is_rewound(unfinished):
    before = contents(unfinished)
    with RunFolder.reopen(unfinished) as folder:
        assert (folder.size, folder.sync()) == (39, 39)  # three lines of 13 bytes
        assert contents(unfinished) == before
        folder.rewind(26, 2)
        assert (folder.size, folder.appended) == (26, 2)
        folder.append({"round": 7})
        assert folder.appended == 3
    assert open_run(unfinished).rows() == [{"round": 1}, {"round": 2}, {"round": 7}]
    assert contents(unfinished).keys() == {"config.toml", METRICS}  # the traceback was of what came after
    left = {path.name for path in (unfinished / CHECKPOINTS).iterdir()}
    assert left == {WHOLE, "notes.txt"}


def test_a_run_that_is_reopened_is_never_discarded(unfinished):
    def leave_by(error: BaseException) -> None:
        with RunFolder.reopen(unfinished) as folder:
            folder.rewind()
            folder.write_config({"name": "x"})
            raise error

    with pytest.raises(InputError):
        leave_by(InputError("lr", -1, "make it positive"))
    assert contents(unfinished).keys() == {"config.toml", METRICS}


def test_a_run_without_rows_is_reopened_too(tmp_path):
    RunFolder.create(tmp_path, "x").write_config({"name": "x"})
    with RunFolder.reopen(tmp_path) as folder, RunFolder.reopen(tmp_path) as other:
        assert folder.size == 0
        folder.rewind()
        with pytest.raises(StorageError, match="file exists"):
            other.rewind()
        with pytest.raises(InputError, match="another process is writing to it"):
            RunFolder.reopen(tmp_path)
        folder.append({"round": 1})
    assert open_run(tmp_path).rows() == [{"round": 1}]


def test_one_process_at_a_time_writes_to_a_run(unfinished):
    with RunFolder.reopen(unfinished), pytest.raises(InputError, match="another process is writing to it"):
        RunFolder.reopen(unfinished)
    RunFolder.reopen(unfinished).close()
    fresh = RunFolder.create(unfinished, "x", force=True)
    fresh.append({"round": 1})
    with pytest.raises(InputError, match="another process is writing to it"):
        RunFolder.reopen(unfinished)
    fresh.close()


@pytest.mark.parametrize(
    ("summary", "ended"),
    [
        ('{"status": "finished"}', "finished"),
        ('{"status": "stalled"}', "stalled"),
        ('{"status": "interrupted"}', None),
        ('{"status": "fin', None),
        ("[]", None),
        ('{"reason": "none"}', None),
        ('{"status": []}', None),
        (None, None),
    ],
)
def test_how_a_run_has_ended(tmp_path, summary, ended):
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    assert RunFolder(tmp_path).ended() == ended


WRITES = """
import sys
from pathlib import Path
from fedsim.running.folder import RunFolder
folder = RunFolder.create(Path(sys.argv[1]), "x")
folder.write_config({"name": "x"})
folder.append({"round": 1})
print("written", flush=True)
sys.stdin.read()
"""
"""A process that begins a run and goes on with it until it is killed."""


def test_the_status_of_a_run_whose_process_lives_and_is_killed(tmp_path):
    run, copy = tmp_path / "run", tmp_path / "copy"
    command = [sys.executable, "-c", WRITES, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        shutil.copytree(run, copy)
        told = [open_run(path).status() for path in (run, copy, run)]
        process.kill()
    assert told == ["running", "interrupted", "running"]
    assert open_run(run).status() == "interrupted"
    with RunFolder.reopen(run) as again:
        assert again.status() == "running"
        again.write_traceback("Traceback")
        assert again.status() == "running"
    assert open_run(run).status() == "failed"
    (run / "summary.json").write_text('{"status": "stopped"}')
    with RunFolder.reopen(run) as again:
        assert again.status() == "stopped"


def test_to_ask_for_the_status_keeps_no_run_from_beginning(unfinished, monkeypatch):
    """Who asks holds the file for an instant, in which another asks, and a run goes on."""
    asks = (unfinished / METRICS).open("rb")
    fcntl.flock(asks, fcntl.LOCK_SH)
    assert open_run(unfinished).status() == "failed"
    monkeypatch.setattr(time, "sleep", lambda _: asks.close())
    RunFolder.reopen(unfinished).close()


def test_a_file_may_be_written_in_parts(tmp_path):
    write_whole(tmp_path / "file", b"ab", memoryview(b"cd"), b"")
    assert (tmp_path / "file").read_bytes() == b"abcd"


def test_open_run_refuses_what_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="no run is there"):
            open_run(path)
    (tmp_path / "config.toml").write_text("name = ")
    with pytest.raises(InputError, match="is not TOML"):
        open_run(tmp_path).config()


def test_history_is_read_when_it_is_asked(tmp_path):
    folder = RunFolder.create(tmp_path, "x")
    history = folder.history
    folder.append({"round": 1, "train_loss": 2.0})
    folder.append({"round": 2, "train_loss": 1.0, "test_accuracy": 0.5})
    folder.append({"round": 3, "train_loss": float("nan")})
    folder.close()
    assert len(history) == 3
    assert history.columns == ("round", "train_loss", "test_accuracy")
    assert history["test_accuracy"] == [None, 0.5, None]
    np.testing.assert_array_equal(history.to_numpy("train_loss"), [2.0, 1.0, np.nan])
    assert history.last("test_accuracy") == 0.5  # the last evaluation
    assert history.last("train_loss") is None  # it was measured, and was not finite
    assert [row["round"] for row in history] == [1, 2, 3]
    with pytest.raises(KeyError, match="no column test_loss; there are: round, train_loss, test_accuracy"):
        history["test_loss"]


def test_history_of_rows_is_a_copy():
    rows = [{"round": 1}]
    history = History(rows)
    history.rows[0]["round"] = 9
    assert rows == [{"round": 1}]
    assert len(History([])) == 0
