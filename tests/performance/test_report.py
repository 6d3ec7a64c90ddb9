"""profiling/report.py through its command line, and the finding of profiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from traces import ChromeTrace, NsysExport, two_steps

from fusionseg.performance.profile_files import export_report, find_profiles, read_profiles, recorded_times
from fusionseg.utils.errors import UserError

REPOSITORY = Path(__file__).parents[2]
# Exports by copying what the test has put beside the report.
NSYS = """#!/bin/bash
while [ "$1" != --output ]; do shift; done
echo "$2 from $3" >> "$(dirname "$0")/calls"
cp "${3%.nsys-rep}.made" "$2" || { echo "Failed to open the report" >&2; exit 1; }
"""


def report(*arguments: object, status: int = 0, path: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "profiling/report.py"), *map(str, arguments)]
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), **({} if path is None else {"PATH": path})}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The cells of the first table below a heading of the page, by the first cell of the row."""
    lines = page.split(f"## {heading}\n")[1].split("\n## ")[0].strip().splitlines()
    table = []
    for line in lines:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif table:
            break
    return {cells[0].strip(): cells[1:] for cells in table}


def trace(path: Path, slower: float = 0) -> Path:
    made = ChromeTrace()
    two_steps(made, slower)
    return made.write(path)


def write_records(run: Path, *records: dict[str, Any], torn: str = "") -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + torn)


@pytest.fixture
def stand_in_nsys(tmp_path: Path) -> str:
    """A PATH with an `nsys` that can export."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nsys").write_text(NSYS)
    (tmp_path / "bin/nsys").chmod(0o755)
    return f"{tmp_path / 'bin'}:{os.environ['PATH']}"


def test_all_ranks_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "runs/small"
    trace(run / "profile/trace_rank0.json.gz")
    trace(run / "profile/trace_rank1.json.gz", slower=100)
    (run / "profile/summary_rank0.json").write_text("{}")  # what the run itself writes there is no profile
    write_records(
        run,
        {"kind": "train", "step": 1, "step_s": 0.5, "data_s": 0.1, "loss": 1.0},
        {"kind": "train", "step": 2, "step_s": 0.2, "data_s": 0.04, "loss": 1.0},
        {"kind": "train", "step": 3, "step_s": 0.3, "data_s": 0.06, "loss": 1.0},
        {"kind": "end", "step": 3, "total_s": 200.0, "phases_s": {"forward": 50.0, "validate": 100.0}},
    )
    done = report(run)
    page = (run / "profile/report.md").read_text()
    assert done.stdout == page
    assert page.startswith("# Time profile of small\n")
    window = rows(page, "Profile range")
    assert window[""] == ["rank 0", "rank 1", "spread"]
    assert window["complete steps"] == ["2", "2", "0"]
    assert window["step, mean"] == ["1.10 ms", "1.10 ms", "0.00 ms"]
    assert window["host outside all phases"] == ["29.1 %", "20.0 %", "9.1 %"]
    assert window["GPU busy"] == ["59.1 %", "59.1 %", "0.0 %"]
    assert window["exposed communication"] == ["0.26 ms", "0.26 ms", "0.00 ms"]
    phases = rows(page, "Phases")
    assert phases["optimizer"] == ["0.08 ms", "0.18 ms", "0.10 ms"]
    assert phases["backward"] == ["0.36 ms", "0.36 ms", "0.00 ms"]
    assert rows(page, "GPU idle times (rank 0)")["forward"] == ["0.20"]
    assert rows(page, "Kernels by kind (rank 0)")["communication"] == ["2", "0.40", "27.8 %"]
    assert rows(page, "Operators by time of their kernels (rank 0)")["`aten::cudnn_convolution`"] == [
        "2",
        "0.04",
        "0.40",
    ]
    assert rows(page, "Ranges inside phases (rank 0)")["`encoder`"] == ["forward", "2", "0.28", "0.14", "0.50"]
    assert "Median of 3 train records: 300.00 ms per step, 60.00 ms of it for data." in page
    recorded = rows(page, "Times recorded by the run")
    assert recorded["validate"] == ["1m40s", "50.0 %"]
    result = json.loads((run / "profile/report.json").read_text())
    assert list(result["profiles"]) == ["rank 0", "rank 1"]
    assert result["account"]["phases_s"] == {"forward": 50.0, "validate": 100.0}
    picture = matplotlib.image.imread(run / "profile/report.png")
    assert picture.shape[0] > 500 and picture.std() > 0.05
    # What it wrote is none of its profiles.
    assert len(find_profiles(run)) == 2


def test_one_profile_has_its_phases_in_one_table(tmp_path: Path) -> None:
    export = NsysExport()
    two_steps(export)
    file = export.write(tmp_path / "nsys_rank3_node1.sqlite")
    write_records(tmp_path / "run", {"kind": "train", "step": 1, "loss": 1.0}, torn='{"kind": "end", "st')
    report(file, "--run", tmp_path / "run", "--output", tmp_path / "out", "--top", 3)
    page = (tmp_path / "out/report.md").read_text()
    phases = rows(page, "Phases")
    assert phases["phase"] == ["count", "host ms", "share", "kernels ms", "kernels", "copies ms"]
    assert phases["forward"] == ["2", "0.20", "18.2 %", "0.25", "2", "0.00"]
    assert phases["augment"] == ["2", "0.05", "4.5 %", "0.00", "0", "0.02"]
    assert phases["outside phases"][:3] == ["", "0.32", "29.1 %"]
    assert "## Operators" not in page  # Nsight Systems has none
    assert "metrics.jsonl has no times yet." in page
    assert len(json.loads((tmp_path / "out/report.json").read_text())["profiles"]["rank 3"]["kernels"]["top"]) == 3


def test_a_profile_of_a_cpu_without_steps(tmp_path: Path) -> None:
    made = ChromeTrace()
    made.range("validate", 0, 4000)
    made.operator("aten::add | aten::mul", 0, 3000)
    file = made.write(tmp_path / "trace.json")
    page = report(file).stdout
    assert list(rows(page, "Profile range"))[2:] == ["profile range", "complete steps", "host outside all phases"]
    assert rows(page, "Phases")["validate"][:2] == ["1", "4.00"]
    assert "## Kernels" not in page and "recorded by the run" not in page
    assert r"`aten::add \| aten::mul`" in page
    assert (tmp_path / "report.png").stat().st_size > 5000


def test_a_report_is_exported_first(tmp_path: Path, stand_in_nsys: str) -> None:
    made = NsysExport()
    two_steps(made)
    made.write(tmp_path / "nsys_rank0_a.made")
    (tmp_path / "nsys_rank0_a.nsys-rep").write_text("report")
    page = report(tmp_path, path=stand_in_nsys).stdout
    assert rows(page, "Phases")["backward"][1] == "0.36"
    report(tmp_path, path=stand_in_nsys)  # there is an export now, and nothing to do
    calls = (tmp_path / "bin/calls").read_text().splitlines()
    assert calls == [f"{tmp_path}/nsys_rank0_a.sqlite from {tmp_path}/nsys_rank0_a.nsys-rep"]
    os.utime(tmp_path / "nsys_rank0_a.sqlite", (1, 1))  # of an earlier report of that name
    report(tmp_path, path=stand_in_nsys)
    assert len((tmp_path / "bin/calls").read_text().splitlines()) == 2


def test_a_report_that_cannot_be_exported(tmp_path: Path, stand_in_nsys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.nsys-rep").write_text("report")
    monkeypatch.setenv("PATH", stand_in_nsys)
    with pytest.raises(UserError, match=r"a.nsys-rep: nsys export failed with status 1: Failed to open the report"):
        export_report(tmp_path / "a.nsys-rep")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"a.nsys-rep: nsys is not on PATH.*nsys export --type sqlite"):
        export_report(tmp_path / "a.nsys-rep")
    with pytest.raises(UserError, match="does not exist"):
        export_report(tmp_path / "b.nsys-rep")


def test_all_problems_are_said_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "trace_rank1.json").write_text("{")
    good = trace(tmp_path / "trace_rank0.json")
    before = set(tmp_path.iterdir())
    done = report(good, tmp_path / "trace_rank1.json", tmp_path / "no.sqlite", tmp_path / "what.txt", status=2)
    assert done.stdout == "" and set(tmp_path.iterdir()) == before
    first, second, third = done.stderr.splitlines()
    assert "trace_rank1.json: the file is incomplete" in first
    assert "no.sqlite: the file does not exist" in second
    assert "what.txt: unknown kind of file (expected a trace of torch.profiler" in third


def test_a_top_of_nothing(tmp_path: Path) -> None:
    assert "--top: " in report(trace(tmp_path / "trace.json"), "--top", 0, status=2).stderr


def test_folders_without_profiles_or_records(tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    done = report(tmp_path, status=2)
    assert f"{tmp_path}/profile: there is no profile" in done.stderr and "profile.with=torch" in done.stderr
    done = report(trace(tmp_path / "trace.json"), "--run", tmp_path, status=2)
    assert f"{tmp_path}: the folder is no run folder" in done.stderr


def test_profiles_are_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    for rank in (0, 2, 10):
        trace(tmp_path / f"trace_rank{rank}.json.gz")
    assert list(read_profiles(find_profiles(tmp_path))) == ["rank 0", "rank 2", "rank 10"]


def test_labels_are_unique(tmp_path: Path) -> None:
    torch_made, nsys_made = trace(tmp_path / "a/trace_rank0.json"), NsysExport()
    two_steps(nsys_made)
    export = nsys_made.write(tmp_path / "a/nsys_rank0.sqlite")
    other = trace(tmp_path / "b/trace_rank0.json")
    assert list(read_profiles([torch_made, export])) == ["trace_rank0.json", "nsys_rank0.sqlite"]
    assert list(read_profiles([torch_made, other, other])) == [str(torch_made), str(other)]


def test_the_recorded_times_takes_what_is_there(tmp_path: Path) -> None:
    write_records(tmp_path, {"kind": "train", "step": 1, "step_s": None}, {"kind": "end", "step": 1, "total_s": 3.0})
    assert recorded_times(tmp_path) == {"records": 1, "total_s": 3.0}
