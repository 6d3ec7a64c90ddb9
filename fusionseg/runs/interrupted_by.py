"""Print the signal that interrupted the last start of a run, for batch scripts.

    python -m fusionseg.runs.interrupted_by FOLDER SINCE

Prints the name of the signal, such as SIGUSR2, or "hung" if the watchdog ended the start. Prints nothing if the start
was not interrupted, left no record, or left one that is older than SINCE (seconds since 1970, as `date +%s` gives).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fusionseg.runs.paths import RunPaths
from fusionseg.runs.records import RunStatus, last_end


def interrupted_by(run: Path, since: float) -> str:
    """The signal that interrupted the last start of a run, or "hung" for a hang; empty if there is neither.

    Args:
        run: the run folder.
        since: seconds since 1970. A last record that is older does not count.
    """
    end = last_end(run)
    if end is None or RunPaths(run).metrics.stat().st_mtime < since:
        return ""
    if end["status"] == RunStatus.HUNG:
        return RunStatus.HUNG
    return str(end["reason"]) if end["status"] == RunStatus.INTERRUPTED else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the signal; the exit status."""
    folder, since = sys.argv[1:] if argv is None else argv
    print(interrupted_by(Path(folder), float(since)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
