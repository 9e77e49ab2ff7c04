"""`fedsim report`: where the page goes, and what is refused."""

from __future__ import annotations

import pytest
from runs_on_disk import write
from typer.testing import CliRunner

from fedsim.cli.answers import answering
from fedsim.cli.main import app
from fedsim.cli.report import leave_report
from fedsim.core.errors import InputError
from fedsim.reports import page


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_a_page_is_written_and_none_is_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", [0.1, 0.5])
    assert call("a") == "report: report.html\n"
    first = (tmp_path / "report.html").read_bytes()
    assert call("a", "--target", "test_accuracy=0.3") == "report: report-1.html\n"
    assert (tmp_path / "report.html").read_bytes() == first
    with pytest.raises(InputError, match="this file exists; choose another or pass --force"):
        call("a", "--out", "report.html")
    assert call("a", "--out", "report.html", "--force", "--along", "time") == "report: report.html\n"
    assert (tmp_path / "report.html").read_bytes() != first


def test_what_cannot_be_reported_is_said_in_a_line(tmp_path):
    write(tmp_path / "a", [0.1, 0.5])
    for wrong, said in (
        ([tmp_path / "absent"], "there is no run"),
        ([tmp_path / "a", "--target", "speed=1"], "name one of: "),
        ([tmp_path / "a", "--along", "money"], "name one of: "),
        ([tmp_path / "a", "--out", tmp_path / "absent" / "page.html"], "cannot write"),
    ):
        with pytest.raises(InputError, match=said):
            call(*wrong)


def test_a_page_that_fails_is_said_and_fails_no_run(tmp_path, monkeypatch, capsys):
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no room for pages")

    monkeypatch.setattr(page, "write_page", fails)
    with answering() as answer:
        leave_report(write(tmp_path / "a", [0.1, 0.5]), answer)
    told = capsys.readouterr()
    assert "report.html is missing: RuntimeError: no room for pages" in told.err
    assert "report:" not in told.out
