"""The command `table`: the faults that it finds before a run is trained, and a dry run of several sweeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fusionseg import cli
from fusionseg.config import RunConfig, dump_config

FIRST = "name: first\nbase: base.yaml\ngrid: {seed: [0]}\n"
SECOND = "name: second\nbase: base.yaml\nafter: [first.yaml]\npoints: [{name: scratch}]\ngrid: {seed: [0, 1]}\n"

Table = Callable[..., tuple[int, str, str]]


@pytest.fixture
def table(
    balls: Path,
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Table:
    """Call `fusionseg table` for two sweeps, the second with further keys; status, output and errors."""
    (tmp_path / "base.yaml").write_text(dump_config(tiny_config(balls, tmp_path / "runs")))
    (tmp_path / "first.yaml").write_text(FIRST)

    def call(keys: str, *words: str) -> tuple[int, str, str]:
        (tmp_path / "second.yaml").write_text(SECOND + keys)
        status = cli.main(
            ["table", str(tmp_path / "second.yaml"), *(words or ["--dry-run"]), "cluster.gpus_per_node=0"]
        )
        return (status, *capsys.readouterr())

    return call


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("set: {train.steps: many}", "train.steps ("),
        ("table: {against: scrach}", "table.against: no runs are called 'scrach' without seed and fold; did you mean"),
    ],
)
def test_a_fault_of_the_last_sweep_is_found_before_the_first_one_trains(table: Table, keys: str, message: str) -> None:
    status, out, err = table(keys)
    assert status == 2 and message in err and "to do" not in out


def test_a_dry_run_names_the_sweeps_that_come_later(table: Table, tmp_path: Path) -> None:
    status, out, _ = table("table: {against: scratch}")
    assert status == 0 and f"{tmp_path}/runs/first: 1 run, 1 to do" in out
    assert f"{tmp_path}/runs/second: 2 runs, to train after those of first" in out


def test_an_earlier_table_is_named_while_runs_are_missing(table: Table, tmp_path: Path) -> None:
    (tmp_path / "killed").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "killed").chmod(0o755)
    earlier = tmp_path / "runs/second/compare.md"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("| name |")
    status, out, _ = table("", f"cluster.python={tmp_path}/killed")
    assert status == 1 and "first: 0 of 1 run finished" in out
    assert f"{earlier}: was made earlier, and does not have the runs since then" in out
