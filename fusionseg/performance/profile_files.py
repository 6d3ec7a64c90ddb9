"""The files that profiling leaves behind, and what a run itself wrote about its time."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from fusionseg.observability.profiles.timeline import Timeline, read_torch_trace
from fusionseg.performance.nsys_export import read_nsys_export
from fusionseg.runs.records import read_records
from fusionseg.utils.errors import UserError

_TRACES = ("trace*.json", "*.json.gz")
_EXPORTS = "*.sqlite"
_REPORTS = "*.nsys-rep"


def find_profiles(folder: Path) -> list[Path]:
    """The profiles of a run folder (in its `profile`), or of a folder of profiles; of each Nsight report one file.

    Raises:
        UserError: there is none.
    """
    place = folder / "profile" if (folder / "profile").is_dir() else folder
    exports = {path.stem: path for path in place.glob(_EXPORTS)}
    for report in place.glob(_REPORTS):
        export = exports.get(report.stem)
        if export is None or export.stat().st_mtime < report.stat().st_mtime:
            exports[report.stem] = report
    found = [*(path for pattern in _TRACES for path in place.glob(pattern)), *exports.values()]
    if not found:
        raise UserError(
            f"{place}: holds no profile (a trace of torch.profiler, an Nsight Systems report): train with"
            " profile.steps=[100,110] profile.with=torch, or under profiling/nsys.sh with profile.with=nsys"
        )
    return sorted(found, key=lambda path: (rank_of(path) if rank_of(path) is not None else -1, path.name))


def rank_of(path: Path) -> int | None:
    """The rank in a profile's name: 3 for nsys_rank3_node1.nsys-rep."""
    match = re.search(r"rank_?(\d+)", path.name)
    return int(match[1]) if match else None


def read_profiles(paths: Sequence[Path]) -> dict[str, Timeline]:
    """The timelines by label: `rank 0` if each has a rank of its own, else the files' names.

    Raises:
        UserError: files that cannot be read, all of them named.
    """
    problems: list[str] = []
    timelines: dict[Path, Timeline] = {}
    for path in dict.fromkeys(paths):
        try:
            timelines[path] = read_profile(path)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    choices = (
        [path.name if rank_of(path) is None else f"rank {rank_of(path)}" for path in timelines],
        [path.name for path in timelines],
        [str(path) for path in timelines],
    )
    labels = next(labels for labels in choices if len(set(labels)) == len(timelines))
    return dict(zip(labels, timelines.values(), strict=True))


def read_profile(path: Path) -> Timeline:
    """The timeline of a trace, of an Nsight Systems export, or of a report, which is exported first.

    Raises:
        UserError: it is none of them, or cannot be read.
    """
    if path.name.endswith((".json", ".json.gz")):
        return read_torch_trace(path)
    if path.suffix == ".nsys-rep":
        path = export_report(path)
    if path.suffix == ".sqlite":
        return read_nsys_export(path)
    raise UserError(
        f"{path}: is neither a trace of torch.profiler (.json, .json.gz), an Nsight Systems export (.sqlite) or report"
        " (.nsys-rep), nor a run folder"
    )


def export_report(report: Path) -> Path:
    """The SQLite export of an Nsight Systems report, beside it; made unless there is one that is newer.

    Raises:
        UserError: the report is missing, or nsys is, or it fails.
    """
    if not report.is_file():
        raise UserError(f"{report}: there is no such file")
    export = report.with_suffix(".sqlite")
    if export.exists() and export.stat().st_mtime >= report.stat().st_mtime:
        return export
    command = ["nsys", "export", "--type", "sqlite", "--force-overwrite", "true", "--output", str(export), str(report)]
    if shutil.which("nsys") is None:
        raise UserError(
            f"{report}: nsys is not on PATH here, and only it reads its reports: run this where it is installed"
            f" (module load cuda or nsight-systems), and give the .sqlite file: {' '.join(command)}"
        )
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or not export.exists():
        said = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()[-1]
        raise UserError(f"{report}: nsys export failed with status {done.returncode}: {said}")
    return export


def own_account(run: Path) -> dict[str, Any]:
    """What a run's metrics.jsonl says of its time, in seconds; only what is there.

    Raises:
        UserError: it is no run folder.
    """
    if not (run / "metrics.jsonl").is_file():
        raise UserError(f"{run}: is no run folder: there is no metrics.jsonl")
    records = read_records(run / "metrics.jsonl")
    trained = [record for record in records if record["kind"] == "train"]
    account: dict[str, Any] = {"records": len(trained)}
    for key in ("step_s", "data_s"):
        values = [record[key] for record in trained if isinstance(record.get(key), int | float)]
        if values:
            account[key] = median(values)
    ends = [record for record in records if record["kind"] == "end"]
    account |= {key: ends[-1][key] for key in ("total_s", "phases_s") if ends and ends[-1].get(key) is not None}
    return account
