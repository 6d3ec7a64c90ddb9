"""Progress on the screen: from the first step on, one display at a time, nothing under --quiet."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fusionseg.train
from fusionseg.config import dump_config
from fusionseg.observability.progress import TrainingProgress, counting_progress, with_progress
from fusionseg.runs.records import read_records
from fusionseg.utils.logs import Verbosity, set_verbosity


class Terminal(io.StringIO):
    """Text that is written to a terminal."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make standard error a terminal. A fixture cannot do this: pytest replaces the stream when a test begins."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return shown


def test_loss_and_time_left_are_shown_from_the_first_step(
    balls: Path, tmp_path: Path, tiny_config: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if the first logging step is far away; the records are those of the logging steps alone."""
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_config(tiny_config(balls, tmp_path, log={"every": 4})))
    assert fusionseg.train.main(["--config", str(config)]) == 0
    first = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("step "))
    assert first.startswith("step 1/4  loss ") and first.endswith(" left")
    assert fusionseg.train.main(["--config", str(config), "name=every", "log.every=1"]) == 0
    assert [record["step"] for record in read_records(tmp_path / "tiny") if record["kind"] == "train"] == [4]
    means = [record["loss"] for record in read_records(tmp_path / "every") if record["kind"] == "train"]
    (mean,) = [record["loss"] for record in read_records(tmp_path / "tiny") if record["kind"] == "train"]
    assert mean == pytest.approx(sum(means) / 4)


def test_quiet_shows_warnings_and_the_result_only(
    balls: Path, tmp_path: Path, tiny_config: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_config(tiny_config(balls, tmp_path)))
    assert fusionseg.train.main(["--config", str(config), "--quiet"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("completed (step 4) after ")
    assert "cache: " in (tmp_path / "tiny/log.txt").read_text()


def test_a_validation_is_counted_below_the_line_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with TrainingProgress(10, 0, shown=True) as progress:
        progress.record(3, 0.5, 1.0, None, 0.1, 2.0)
        for case in with_progress("validating", ["a", "b", "c"]):
            assert case in "abc"
            progress._live.refresh()  # type: ignore[union-attr]
    shown = terminal.getvalue()
    assert "step 3/10" in shown and "loss 0.5000" in shown and "14s left" in shown
    assert "validating 1/3" in shown and "validating 2/3" in shown


def test_a_count_alone_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with counting_progress("preparing") as progress:
        progress(1, 2)
    assert "preparing" in terminal.getvalue()


@pytest.mark.parametrize("shown", [True, False])
def test_nothing_is_counted_under_quiet_or_on_other_ranks(monkeypatch: pytest.MonkeyPatch, shown: bool) -> None:
    terminal = on_terminal(monkeypatch)
    set_verbosity(Verbosity.QUIET if shown else Verbosity.NORMAL)
    try:
        assert list(with_progress("validating", [1, 2], shown=shown)) == [1, 2]
    finally:
        set_verbosity(Verbosity.NORMAL)
    assert terminal.getvalue() == ""
