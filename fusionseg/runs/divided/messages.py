"""The messages by which the ranks write a checkpoint together.

Rank 0 gives the orders of a checkpoint, one after the other: the name of a temporary folder, or `CLOSED`. The other
ranks answer each order with the size and the hash of their file, or with the error. An order follows on the answers to
the one before it, or on its failure.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from typing import Protocol

from fusionseg.runs.json_files import JsonObject

CLOSED = "closed"
"""The order to leave a checkpoint: it is on disk, or another one replaces it."""
POLL_S = 1.0
"""Seconds of one wait for a message."""


class Messages(Protocol):
    """Texts between the ranks, for one thread of each; see `StoreMessages`."""

    rank: int
    size: int

    def send(self, key: str, text: str) -> None:
        """Set a key."""

    def receive(self, key: str, within_s: float) -> str | None:
        """Wait for a key; None after the time."""

    def forget(self, key: str) -> None:
        """Delete a key."""

    def is_alive(self) -> bool:
        """Tell whether messages can be sent."""


class PartError(OSError):
    """A rank that could not write its part of a checkpoint."""

    def __init__(self, number: int, reason: str, ranks: str) -> None:
        super().__init__(number, reason)
        self.ranks = ranks
        """The ranks in words, such as "rank 3 on node7"."""


def order_key(checkpoint: int, order: int) -> str:
    """The key of an order.

    Args:
        checkpoint: number of the divided checkpoint in this start.
        order: its number, from 0.
    """
    return f"checkpoint {checkpoint}, order {order}"


def answer_key(checkpoint: int, order: int, rank: int) -> str:
    """The key of the answer of a rank to an order."""
    return f"{order_key(checkpoint, order)}, rank {rank}"


def written_text(file: JsonObject) -> str:
    """The answer of a rank that has written its file.

    Args:
        file: its `bytes` and `sha256`.
    """
    return json.dumps({"file": file})


def failed_text(error: BaseException) -> str:
    """The answer of a rank that could not write its file."""
    number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
    known = isinstance(error, OSError) and error.errno
    reason = os.strerror(number) if known else f"{type(error).__name__}: {error}".partition("\n")[0]
    return json.dumps({"errno": number, "reason": reason, "host": socket.gethostname()})


def file_of(answer: str, rank: int) -> JsonObject:
    """The `bytes` and `sha256` of an answer.

    Args:
        answer: of a rank.
        rank: the rank.

    Raises:
        PartError: it could not write.
    """
    parsed = json.loads(answer)
    if "file" not in parsed:
        raise PartError(parsed["errno"], parsed["reason"], f"rank {rank} on {parsed['host']}")
    file: JsonObject = parsed["file"]
    return file
