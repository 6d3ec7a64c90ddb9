"""The message of a rank that another rank does not answer, because it has ended or is late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError

from fusionseg.utils.errors import TrainingStopped

# Texts of gloo and of NCCL. torch raises a RuntimeError with a place in its own code for them.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
_LATE = "Timed out waiting"


@contextmanager
def naming_lost_rank() -> Iterator[None]:
    """Turn the error of a broken or silent connection in the body into a message.

    Raises:
        TrainingStopped: another rank has ended, or did not answer within the time limit.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, DistError) and "gloo" not in text and "NCCL" not in text:
            raise  # a tracker or a reader has connections too
        lost = next((words for words in _LOST if words in text), None)
        if lost is not None:
            raise TrainingStopped(
                f"another rank has ended ({lost}): its own message, or the log of its node, tells the reason"
            ) from error
        if _LATE in text:
            raise TrainingStopped(
                "another rank did not answer within distributed.timeout_s: its log, or hangs/ in the run folder, tells"
                " what it was doing"
            ) from error
        raise
