"""Profile files of a run, and the times that the run itself recorded."""

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
from fusionseg.runs.paths import RunPaths
from fusionseg.runs.records import RecordKind, read_records
from fusionseg.utils.errors import UserError

_TRACES = ("trace*.json", "*.json.gz")
_EXPORTS = "*.sqlite"
_REPORTS = "*.nsys-rep"


def find_profiles(folder: Path) -> list[Path]:
    """List the profiles in a run folder (in its subfolder `profile`) or in a folder of profiles, by rank.

    An Nsight Systems report and its SQLite export count as one profile: the export unless the report is newer.

    Raises:
        UserError: there is no profile.
    """
    place = RunPaths(folder).profile if RunPaths(folder).profile.is_dir() else folder
    exports = {path.stem: path for path in place.glob(_EXPORTS)}
    for report in place.glob(_REPORTS):
        export = exports.get(report.stem)
        if export is None or export.stat().st_mtime < report.stat().st_mtime:
            exports[report.stem] = report
    found = [*(path for pattern in _TRACES for path in place.glob(pattern)), *exports.values()]
    if not found:
        raise UserError(
            f"{place}: there is no profile (trace of torch.profiler or Nsight Systems report); train with"
            " profile.steps=[100,110] profile.with=torch, or under profiling/nsys.sh with profile.with=nsys"
        )
    return sorted(found, key=lambda path: (rank_of(path) if rank_of(path) is not None else -1, path.name))


def rank_of(path: Path) -> int | None:
    """Rank in the name of a profile: 3 for nsys_rank3_node1.nsys-rep; None if the name has none."""
    match = re.search(r"rank_?(\d+)", path.name)
    return int(match[1]) if match else None


def read_profiles(paths: Sequence[Path]) -> dict[str, Timeline]:
    """Read profiles, by label: `rank 0` and so on if the ranks differ, otherwise the file names.

    Raises:
        UserError: some files cannot be read; the message names all of them.
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
    """Read the timeline of a trace, of an Nsight Systems export, or of a report, which is exported first.

    Raises:
        UserError: the file is none of these, or cannot be read.
    """
    if path.name.endswith((".json", ".json.gz")):
        return read_torch_trace(path)
    if path.suffix == ".nsys-rep":
        path = export_report(path)
    if path.suffix == ".sqlite":
        return read_nsys_export(path)
    raise UserError(
        f"{path}: unknown kind of file (expected a trace of torch.profiler (.json, .json.gz), an Nsight Systems export"
        " (.sqlite) or report (.nsys-rep), or a run folder)"
    )


def export_report(report: Path) -> Path:
    """Export an Nsight Systems report to an SQLite file beside it, unless there is one that is newer.

    Raises:
        UserError: the report or the program nsys is missing, or nsys fails.
    """
    if not report.is_file():
        raise UserError(f"{report}: the file does not exist")
    export = report.with_suffix(".sqlite")
    if export.exists() and export.stat().st_mtime >= report.stat().st_mtime:
        return export
    command = ["nsys", "export", "--type", "sqlite", "--force-overwrite", "true", "--output", str(export), str(report)]
    if shutil.which("nsys") is None:
        raise UserError(
            f"{report}: nsys is not on PATH, and no other program reads its reports; run this command where nsys is"
            f" installed (module load cuda or nsight-systems), and give the .sqlite file: {' '.join(command)}"
        )
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or not export.exists():
        output = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise UserError(f"{report}: nsys export failed with status {done.returncode}: {output}")
    return export


def recorded_times(run: Path) -> dict[str, Any]:
    """Read the times that a run recorded in metrics.jsonl, in seconds.

    Args:
        run: run folder.

    Returns:
        `records`, the number of train records; medians of `step_s` and `data_s`; `total_s` and `phases_s` of the last
        end record. Keys without a record are missing.

    Raises:
        UserError: the folder is no run folder.
    """
    metrics = RunPaths(run).metrics
    if not metrics.is_file():
        raise UserError(f"{run}: the folder is no run folder (it has no {metrics.name})")
    records = read_records(run)
    trained = [record for record in records if record["kind"] == RecordKind.TRAIN]
    times: dict[str, Any] = {"records": len(trained)}
    for key in ("step_s", "data_s"):
        values = [record[key] for record in trained if isinstance(record.get(key), int | float)]
        if values:
            times[key] = median(values)
    ends = [record for record in records if record["kind"] == RecordKind.END]
    times |= {key: ends[-1][key] for key in ("total_s", "phases_s") if ends and ends[-1].get(key) is not None}
    return times
