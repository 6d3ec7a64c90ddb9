"""Exit status of every command: 0 done, 2 the request is wrong, 1 anything else."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from fusionseg.utils.errors import TrainingStopped, UserError, WriteError

DONE, FAILED, WRONG_REQUEST = 0, 1, 2


def run(work: Callable[[], int]) -> int:
    """Call `work`; a UserError becomes its message and status 2, without a traceback."""
    try:
        return work()
    except UserError as error:
        rank = int(os.environ.get("RANK", "0") or 0)
        prefix = f"rank {rank}: error: " if rank else "error: "
        print(
            "\n".join(prefix + error.problems[0] if n == 0 else text for n, text in enumerate(error.problems)),
            file=sys.stderr,
        )
        return WRONG_REQUEST
    except TrainingStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return FAILED
    except WriteError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        named = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {named}{error.strerror}", file=sys.stderr)
        return FAILED
