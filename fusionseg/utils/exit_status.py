"""Exit status of every command: 0 for success, 2 for a wrong request, 1 for any other failure."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fusionseg.utils.errors import TrainingStopped, UserError, WriteError
from fusionseg.utils.logs import log, process_rank
from fusionseg.utils.tables import printable

DONE, FAILED, WRONG_REQUEST = 0, 1, 2
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_TORCHRUN_FILE = "TORCHELASTIC_ERROR_FILE"


def run(work: Callable[[], int]) -> int:
    """Call `work` and return its exit status.

    An expected failure becomes a message on standard error, without a traceback. An unexpected exception is raised
    again. Under torchrun both are also written to the file from which torchrun reads the cause of a failure: torchrun
    prints that cause last, after its own messages.

    Args:
        work: returns the exit status.
    """
    try:
        return work()
    except UserError as error:
        log.debug("%s", traceback.format_exc().rstrip())
        return _report("error: " + "\n".join(error.problems), WRONG_REQUEST)
    except TrainingStopped as error:
        return _report(f"stopped: {error}", FAILED)
    except KeyboardInterrupt:
        return _report("interrupted", FAILED)
    except WriteError as error:
        return _report(f"error: {error}", FAILED)
    except OSError as error:
        if error.filename is None and error.errno not in _DISK_ERRORS:
            tell_torchrun(traceback.format_exc())
            raise
        file = "" if error.filename is None else f"{error.filename}: "
        return _report(f"error: {file}{error.strerror}", FAILED)
    except Exception:
        tell_torchrun(traceback.format_exc())
        raise


def _report(message: str, status: int) -> int:
    """Print a message, with the rank if it is not 0, also for torchrun; return the status."""
    rank = process_rank()
    text = printable(f"rank {rank}: {message}" if rank else message)
    print(text, file=sys.stderr)
    tell_torchrun(text)
    return status


def tell_torchrun(text: str) -> None:
    """Write the cause of a failure where torchrun looks for it (torch.distributed.elastic.multiprocessing.errors)."""
    file = os.environ.get(_TORCHRUN_FILE)
    if file:
        content = {"message": {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with suppress(OSError):  # the message is on standard error already
            Path(file).write_text(json.dumps(content), encoding="utf-8")
