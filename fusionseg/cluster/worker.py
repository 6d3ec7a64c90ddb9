"""A rank of a submitted run: `python -m fusionseg.cluster.worker RUN_FOLDER`, alone or under torchrun.

The configuration is read from the run folder. If a signal ended the run after it had saved, the exit status is
0, so that torchrun does not restart it. The job reads the run's records and decides whether to requeue.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from fusionseg.runs.job_events import JobEvent, read_events, write_event
from fusionseg.training.ending.signals import is_ignored
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE, run
from fusionseg.utils.logs import process_rank
from fusionseg.utils.streams import PATIENCE_S, protect


def main(argv: Sequence[str] | None = None) -> int:
    """Train the run and return the exit status.

    Args:
        argv: the run folder; None takes it from the command line.
    """
    protect(PATIENCE_S)
    (folder,) = sys.argv[1:] if argv is None else argv

    def work() -> int:
        from fusionseg.runs.folder import PREDECESSOR_S
        from fusionseg.runs.run_config import load_run_config
        from fusionseg.runs.trust.consent import trusting
        from fusionseg.training.start import train

        try:
            with trusting(True):  # `submit` wrote this configuration, perhaps where another home is
                config = load_run_config(Path(folder))
            train(config, PREDECESSOR_S)
        except UserError as error:
            if process_rank() == 0:
                write_event(Path(folder), JobEvent.REFUSED, reason=_short(error.problems))
            raise
        return DONE

    status = run(work)
    # If torchrun restarted a run that was refused, it would be refused again. The reason is among the run's events.
    return DONE if os.environ.get("TORCHELASTIC_RUN_ID") and status != DONE and _was_refused(Path(folder)) else status


def _short(problems: Sequence[str]) -> str:
    """The first two problems, of which the first one may be a heading, and the number of the others."""
    more = [f"and {len(problems) - 2} more"] if len(problems) > 2 else []
    return "; ".join([*(problem.strip() for problem in problems[:2]), *more])


def _was_refused(folder: Path) -> bool:
    events = read_events(folder)
    return bool(events) and events[-1]["event"] == JobEvent.REFUSED


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(DONE)


if __name__ == "__main__":
    # These handlers hold until the training sets its own. torchrun ignores the first two signals, and its processes
    # inherit that.
    _NUMBERS = [signal.SIGUSR2, signal.SIGTERM, *([] if is_ignored(signal.SIGHUP) else [signal.SIGHUP])]
    for _number in _NUMBERS:
        signal.signal(_number, _leave)
    try:
        sys.exit(main())
    finally:
        # The job repeats its signal until all ranks have ended. When Python ends, it restores the default handlers: a
        # rank that such a signal killed at its end would make torchrun restart all ranks.
        for _number in _NUMBERS:
            signal.signal(_number, signal.SIG_IGN)
