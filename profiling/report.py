"""Where the time of a run goes, from its profiles: one page of tables, the same as JSON, and a picture.

    python profiling/report.py runs/hippocampus_unet                         # the profiles in its folder, all ranks
    python profiling/report.py trace_rank0.json.gz --run runs/hippocampus_unet --output report
    python profiling/report.py nsys_rank0_node1.sqlite nsys_rank1_node1.sqlite

Traces of torch.profiler (.json, .json.gz), Nsight Systems exports (.sqlite) and reports (.nsys-rep, exported by nsys if
it is on PATH). Several profiles are the ranks of one run: a column each, and the spread between them. Beside the
profiles (or in --output): report.md, report.json, report.png.
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
    """Write the report and print its page; the exit status."""
    if top < 1:
        raise UserError(f"--top {top}: is how many are listed, 1 or more")
    folders = [path for path in profiles if path.is_dir()]
    files = [file for path in profiles for file in (find_profiles(path) if path.is_dir() else [path])]
    run_folder = run_folder or next((path for path in folders if RunPaths(path).metrics.exists()), None)
    account = None if run_folder is None else recorded_times(run_folder)
    timelines = read_profiles(files)
    summaries = {label: summarise(timeline, top) for label, timeline in timelines.items()}
    label, timeline = next(iter(timelines.items()))
    title = run_folder.resolve().name if run_folder is not None else ", ".join(file.name for file in files)
    page = report_page(title, summaries, account, "report.png")
    folder = output or files[0].parent
    draw_profile(folder / "report.png", label, timeline, summaries)
    write_json(folder / "report.json", {"run": title, "account": account, "profiles": summaries})
    write_text(folder / "report.md", page)
    print(page, end="")
    print(f"{folder}: report.md, report.json, report.png", file=sys.stderr)
    return DONE


def main() -> int:
    """Read the arguments; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="+", type=Path, metavar="PROFILE|RUN", help="profile, or folder of a run")
    parser.add_argument("--run", type=Path, help="run folder whose own account of its time is added")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to write (default: beside the profiles)")
    parser.add_argument("--top", type=int, default=20, help="kernels, operators, ranges in report.json (default 20)")
    arguments = parser.parse_args()
    return run(lambda: report(arguments.profiles, arguments.run, arguments.output, arguments.top))


if __name__ == "__main__":
    sys.exit(main())
