"""A rank of a submitted run: `python -m fusionseg.cluster.worker RUN_FOLDER`, alone or under torchrun.

The configuration is the one in the folder. A run that was told to save and leave ends with status 0: it is for the
job, which looks at the run's records, to decide what follows, and torchrun must not start it again.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from fusionseg.runs.job_events import JobEvent, read_events, write_event
from fusionseg.training.signals import is_ignored
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE, run
from fusionseg.utils.streams import PATIENCE_S, protect

PREDECESSOR_S = 60.0
"""How long a restarted run waits for its predecessor to leave the folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train; the exit status."""
    protect(PATIENCE_S)
    (folder,) = sys.argv[1:] if argv is None else argv

    def work() -> int:
        from fusionseg.runs.run_config import load_run_config
        from fusionseg.training.start import train

        try:
            train(load_run_config(Path(folder)), PREDECESSOR_S)
        except UserError as error:
            if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
                write_event(Path(folder), JobEvent.REFUSED, reason=error.problems[0])
            raise
        return DONE

    status = run(work)
    # A second attempt of torchrun's would be refused as well. What is told by its status is in the ledger.
    return DONE if os.environ.get("TORCHELASTIC_RUN_ID") and status != DONE and _was_refused(Path(folder)) else status


def _was_refused(folder: Path) -> bool:
    events = read_events(folder)
    return bool(events) and events[-1]["event"] == JobEvent.REFUSED


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(DONE)


if __name__ == "__main__":
    # Until the training has its own handlers: torchrun ignores the first two, and what it starts inherits that.
    _NUMBERS = [signal.SIGUSR2, signal.SIGTERM, *([] if is_ignored(signal.SIGHUP) else [signal.SIGHUP])]
    for _number in _NUMBERS:
        signal.signal(_number, _leave)
    try:
        sys.exit(main())
    finally:
        # The job sends its signal again until all ranks have gone. Python ends by giving signals their default back,
        # and a rank that died of one while it left would have torchrun start all of them again.
        for _number in _NUMBERS:
            signal.signal(_number, signal.SIG_IGN)
