"""The end of a rank whose torchrun has ended: nobody would restart it, and nobody would stop it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

log = logging.getLogger("fusionseg")

POLL_S = 1.0
_ended = threading.Event()
_watched = False


def torchrun_has_ended() -> bool:
    """Tell whether the torchrun that started this process has ended before it."""
    return _ended.is_set()


def end_with_torchrun(limit_s: float) -> None:
    """Send SIGTERM to this process when torchrun has ended, so that it saves and ends. Without torchrun do nothing.

    A torchrun that is killed leaves its ranks behind. A thread looks at the parent of this process once a second. The
    kernel's own signal for this (PR_SET_PDEATHSIG) would also come when a mere thread of torchrun ends.

    Args:
        limit_s: seconds after which the process is ended at once, if it has not ended by itself.
    """
    global _watched
    if _watched or not os.environ.get("TORCHELASTIC_RUN_ID"):
        return
    _watched = True
    parent = os.getppid()
    threading.Thread(target=_watch, args=(parent, limit_s), name="torchrun watch", daemon=True).start()


def _watch(parent: int, limit_s: float) -> None:
    if not _was_adopted(parent):
        while os.getppid() == parent:
            time.sleep(POLL_S)
    _ended.set()
    log.warning("torchrun has ended before its ranks: this rank ends, and saves a checkpoint first if it trains")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(limit_s)
    log.error("this rank could not end in %.0f s after torchrun: it is ended now", limit_s)
    os._exit(1)


def _was_adopted(parent: int) -> bool:
    """Tell whether torchrun had ended before the watch began. In a container, torchrun itself may be process 1."""
    if parent != 1:
        return False
    try:
        command = Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        return False
    return b"python" not in command and b"torchrun" not in command
