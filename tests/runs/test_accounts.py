"""The account of a run: its starts, the cost of restarts, known troubles; `status RUN` and `doctor RUN`."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from written_runs import write_run

from fusionseg import cli
from fusionseg.config.reference import key_reference
from fusionseg.runs.accounts import findings
from fusionseg.runs.accounts.account import read_account
from fusionseg.runs.accounts.findings import find_troubles
from fusionseg.runs.accounts.history import read_history, record_hang, write_end, write_start

RANKS = [{"rank": rank, "host": "node1", "name": "H100"} for rank in range(2)]


def start(at: str, step: int, **fields: Any) -> dict[str, Any]:
    common = {"ranks": 2, "hosts": ["node1"], "devices": ["H100", "H100"]}
    return {"event": "start", "time": at, "began": at, "step": step, **common, **fields}


def end(at: str, step: int, status: str, reason: str = "") -> dict[str, Any]:
    return {"event": "end", "time": at, "step": step, "status": status, "reason": reason}


# Ten minutes of training that SIGUSR2 ended, five that a kill ended at step 75, and five to the end.
HISTORY = [
    start("2026-01-01T10:00:00+00:00", 0),
    end("2026-01-01T10:10:00+00:00", 50, "interrupted", "SIGUSR2"),
    start("2026-01-01T11:00:00+00:00", 50, before=50, before_at="2026-01-01T10:10:00+00:00"),
    start("2026-01-01T12:00:00+00:00", 60, before=75, before_at="2026-01-01T11:05:00+00:00"),
    end("2026-01-01T12:05:00+00:00", 100, "completed", "step 100"),
]


def write_history(run: Path, lines: Sequence[dict[str, Any]]) -> None:
    (run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_records(run: Path, count: int, **fields: Any) -> None:
    """Train records at steps 10, 20, ... before the end record."""
    lines = [
        {"kind": "train", "step": 10 * n, "loss": 0.5, "step_s": 9.0, "data_s": 0.1, "skipped": 0} | fields
        for n in range(1, count + 1)
    ]
    lines.append({"kind": "val", "step": 10 * count, "dice": 0.8, "val_s": 60.0})
    lines.append({"kind": "end", "step": 10 * count, "status": "completed", "reason": f"step {10 * count}"})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "run", [0.8])
    write_records(run, 10)
    write_history(run, HISTORY)
    return run


def test_the_starts_of_a_run_and_how_they_ended(run: Path) -> None:
    one, two, three = read_history(run)
    assert (one.step, one.reached, one.status, one.reason, one.wall_s) == (0, 50, "interrupted", "SIGUSR2", 600)
    assert (two.step, two.reached, two.status, two.wall_s) == (50, 75, None, 300)
    assert (three.step, three.reached, three.status, three.wall_s) == (60, 100, "completed", 300)
    assert one.hosts == ("node1",) and one.devices == ("H100", "H100") and one.ranks == 2


def test_what_the_time_was_spent_on(run: Path) -> None:
    account = read_account(run)
    assert account.step == 100 and account.wall_s == 1200
    assert account.trained_s == 900 and account.validated_s == 60
    assert account.repeated_steps == 15 and account.repeated_s == 135
    assert account.other_s == 1200 - 900 - 60 - 135
    assert account.goodput == 0.75


def test_a_start_is_written_with_the_place_where_the_one_before_was_killed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [0.8], status="")
    os.utime(run / "metrics.jsonl", (0, 0))
    write_start(run, 0, RANKS)
    (first,) = read_history(run)
    assert first.ended is None and first.reached == 10 and first.wall_s == 0  # the records are older than this start
    later = time.time() + 50
    os.utime(run / "metrics.jsonl", (later, later))
    write_start(run, 5, RANKS)
    write_end(run, 30, "failed", "no space")
    first, second = read_history(run)
    assert (first.step, first.reached, first.status) == (0, 10, None) and first.wall_s >= 49
    assert (second.step, second.reached, second.status, second.reason) == (5, 30, "failed", "no space")
    assert second.hosts == ("node1",) and second.devices == ("H100", "H100")


def test_a_start_that_hung_before_it_was_written_leaves_the_one_before(run: Path) -> None:
    write_history(run, [*HISTORY[:2], end("2026-01-03T10:00:00+00:00", 0, "hung", "no progress")])
    (one,) = read_history(run)
    assert (one.reached, one.status, one.wall_s) == (50, "interrupted", 600)


def test_two_hangs_at_one_place_are_two_ends(run: Path) -> None:
    records = []
    for _ in range(2):
        record_hang(run, 60, 0, "no progress for 900 s")
        records.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]))
        time.sleep(0.01)
    assert records[0] != records[1]
    assert [(record["step"], record["status"]) for record in records] == [(60, "hung")] * 2


def test_damaged_lines_are_left_out(run: Path) -> None:
    lines = [json.dumps(line) for line in HISTORY]
    bad = ["12", "{", '{"event": "start"}', json.dumps(start("yesterday", 3)), json.dumps(end("x", 3, "failed"))]
    bad.append(json.dumps(start("2026-01-01T10:00:00+00:00", 0, before="many")))
    (run / "history.jsonl").write_text("\n".join([*bad, *lines, '{"event": "sta']))
    assert len(read_history(run)) == 3


def test_a_run_of_an_older_version_has_no_starts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [0.8, 0.9])
    account = read_account(run)
    assert account.starts == [] and account.wall_s == 60 and account.repeated_steps == 0 and account.goodput is None


def test_status_of_a_run_shows_its_account(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(run)]) == 0
    text = capsys.readouterr().out
    for part in (
        "time: 20m00s in 3 starts",
        "75.0%  training steps",
        "5.0%  validations",
        "11.2%  15 steps trained twice",
        "goodput: 75.0% of the time trained the steps that the run has",
        "| 0 to 50 ",
        "| interrupted | SIGUSR2",
        "| 50 to 75 ",
        "| killed ",
        f"next: fusionseg evaluate {run}",
    ):
        assert part in text, text
    (run / "evaluation").mkdir()
    cli.main(["status", str(run)])
    assert f"next: fusionseg report {run}" in capsys.readouterr().out
    cli.main(["status", str(run.parent)])
    assert "goodput" not in capsys.readouterr().out  # a folder of runs is a table


def test_next_command_of_a_run_that_was_killed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_history(run, HISTORY[:3])
    records = (run / "metrics.jsonl").read_text().splitlines()[:-1]
    (run / "metrics.jsonl").write_text("\n".join(records) + "\n")
    (run / "environment.json").write_text(
        json.dumps({"command": ["/x/fusionseg/train.py", "--config", "my config.yaml"]})
    )
    cli.main(["status", str(run)])
    assert "next: python -m fusionseg.train --config 'my config.yaml', or your torchrun" in capsys.readouterr().out
    (run / "environment.json").write_text(json.dumps({"command": ["/x/bin/fusionseg", "train", "name=a"]}))
    cli.main(["status", str(run)])
    assert "next: fusionseg train name=a, or your torchrun" in capsys.readouterr().out
    (run / "environment.json").write_text(json.dumps({"command": ["my_script.py", "--fast"]}))
    cli.main(["status", str(run)])
    assert "next: start the run again with the same command" in capsys.readouterr().out


TROUBLES = [
    ({"data_s": 4.0}, "the data takes 44% of a step"),
    ({"skipped": 30}, "30 of 100 steps were skipped"),
    ({"straggler": {"rank": 3, "phase": "data", "behind_s": 1.0}}, "rank 3 was behind the others in 10 of the last 10"),
]


@pytest.mark.parametrize(("fields", "expected"), TROUBLES)
def test_troubles_in_the_records(run: Path, fields: dict[str, Any], expected: str) -> None:
    assert find_troubles(run) == []
    write_records(run, 10, **fields)
    (trouble,) = find_troubles(run)
    assert trouble.what.startswith(expected) and trouble.remedy


def test_troubles_of_the_end_the_starts_and_the_log(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()[:-1]
    failed = {"kind": "end", "step": 100, "status": "failed", "reason": "OutOfMemoryError: CUDA out of memory. Tried"}
    (run / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(failed)]) + "\n")
    killed = [
        start(f"2026-01-01T1{n}:00:00+00:00", 100, before=100, before_at=f"2026-01-01T1{n}:00:00+00:00")
        for n in range(4)
    ]
    write_history(run, [HISTORY[0], *killed])
    (run / "hangs").mkdir()
    warning = "2026-01-01 10:00:0{n},000 WARNING gpu.csv: a row of 0.{n} s could not be written\n"
    (run / "log.txt").write_text("".join(warning.format(n=n) for n in range(5)))
    assert cli.main(["doctor", str(run), "--json", str(run.parent / "found.json")]) == 1
    text = capsys.readouterr().out
    assert "the last start failed at step 100: OutOfMemoryError" in text and "fusionseg plan finds a patch" in text
    assert "three starts in a row ended at step 100" in text
    assert "there were times without any progress" in text
    assert "5 times in log.txt: gpu.csv: a row of N s could not be written" in text
    found = json.loads((run.parent / "found.json").read_text())["troubles"]
    assert len(found) == 4 and all(trouble["what"] and trouble["remedy"] for trouble in found)


def test_validations_without_a_class(run: Path) -> None:
    lines = [{"kind": "val", "step": 10 * n, "dice": 0.4, "dice_per_class": {"a": 0.8, "b": 0.0}} for n in range(1, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (trouble,) = find_troubles(run)
    assert trouble.what == "the last three validations found nothing of b"


def test_doctor_of_something_else(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(run)]) == 0
    assert "no known trouble" in capsys.readouterr().out
    assert cli.main(["doctor", str(tmp_path / "none")]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_the_remedies_name_keys_that_exist() -> None:
    reference = {key.path for section in key_reference() for key in section.keys}
    sections = "train|optim|data|cache|checkpoint|distributed|log|validate"
    text = Path(findings.__file__).read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![\w.])(?:{sections})\.[a-z_]+(?:\.[a-z_]+)*", text)) - {"log.txt"}
    assert "checkpoint.every" in named and named <= reference
