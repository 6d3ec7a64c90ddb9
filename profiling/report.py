"""Report on the profiles of a run: time by phase, kernel, operator and rank.

    python profiling/report.py runs/hippocampus_unet                         # all profiles in the run folder
    python profiling/report.py trace_rank0.json.gz --run runs/hippocampus_unet --output report
    python profiling/report.py nsys_rank0_node1.sqlite nsys_rank1_node1.sqlite

A profile is a trace of torch.profiler (.json, .json.gz), or an Nsight Systems export (.sqlite) or report (.nsys-rep;
the program nsys must be on PATH to export it). Several profiles are taken as the ranks of one run: each gets a column,
and a last column has their spread. The program writes report.md, report.json and report.png beside the profiles, or in
the folder of --output.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fusionseg.observability.profiles.summary import summarise
from fusionseg.performance.profile_files import find_profiles, read_profiles, recorded_times
from fusionseg.performance.profile_picture import draw_profile
from fusionseg.performance.profile_report import report_page
from fusionseg.runs.paths import RunPaths
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE, run
from fusionseg.utils.files import write_json, write_text


def report(profiles: list[Path], run_folder: Path | None, output: Path | None, top: int) -> int:
    """Write the report, print its page, and return the exit status.

    Args:
        profiles: profile files, or folders with profiles.
        run_folder: run whose recorded times are added; None takes the first folder of `profiles` that is a run.
        output: folder of the report; None writes beside the profiles.
        top: operators, kernels and ranges listed in report.json.

    Raises:
        UserError: an argument is invalid, or a profile cannot be read.
    """
    if top < 1:
        raise UserError(f"--top: the number of listed items is too small (expected 1 or more, got {top})")
    folders = [path for path in profiles if path.is_dir()]
    files = [file for path in profiles for file in (find_profiles(path) if path.is_dir() else [path])]
    run_folder = run_folder or next((path for path in folders if RunPaths(path).metrics.exists()), None)
    recorded = None if run_folder is None else recorded_times(run_folder)
    timelines = read_profiles(files)
    summaries = {label: summarise(timeline, top) for label, timeline in timelines.items()}
    label, timeline = next(iter(timelines.items()))
    title = run_folder.resolve().name if run_folder is not None else ", ".join(file.name for file in files)
    page = report_page(title, summaries, recorded, "report.png")
    folder = output or files[0].parent
    draw_profile(folder / "report.png", label, timeline, summaries)
    write_json(folder / "report.json", {"run": title, "account": recorded, "profiles": summaries})
    write_text(folder / "report.md", page)
    print(page, end="")
    print(f"{folder}: report.md, report.json, report.png", file=sys.stderr)
    return DONE


def main() -> int:
    """Read the arguments, write the report, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="+", type=Path, metavar="PROFILE|RUN", help="profile file, or run folder")
    parser.add_argument("--run", type=Path, help="run folder whose recorded times are added to the report")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="output folder (default: beside the profiles)")
    parser.add_argument(
        "--top", type=int, default=20, help="kernels, operators and ranges listed in report.json (default: 20)"
    )
    arguments = parser.parse_args()
    return run(lambda: report(arguments.profiles, arguments.run, arguments.output, arguments.top))


if __name__ == "__main__":
    sys.exit(main())
