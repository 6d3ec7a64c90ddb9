"""Messages between the ranks through a connection to their store that one thread of each rank has for itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError, Store

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


class StoreMessages:
    """Texts under keys that any rank sets and any rank waits for. A key is used once.

    The training waits in the store too, and a store answers one call at a time: the messages have a connection of their
    own.

    Args:
        store: of the ranks.
        rank: of this process.
        size: number of ranks.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._store: Store = store.clone()  # type: ignore[attr-defined]  # missing in torch's stub

    def send(self, key: str, text: str) -> None:
        """Set a key.

        Raises:
            ConnectionError: the store cannot be reached.
        """
        with _connected():
            self._store.set(key, text)

    def receive(self, key: str, within_s: float) -> str | None:
        """Wait for a key; return its text, or None if no rank has set it in time.

        Args:
            key: of the message.
            within_s: seconds to wait.

        Raises:
            ConnectionError: the store cannot be reached.
        """
        end, pause_s = time.monotonic() + within_s, _FIRST_PAUSE_S
        with _connected():
            while not self._store.check([key]):  # `wait` writes two lines to the screen when its time is over
                left_s = end - time.monotonic()
                if left_s <= 0:
                    return None
                time.sleep(min(pause_s, left_s))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            return str(self._store.get(key).decode())

    def forget(self, key: str) -> None:
        """Delete a key that all ranks have read.

        Raises:
            ConnectionError: the store cannot be reached.
        """
        with _connected():
            self._store.delete_key(key)

    def is_alive(self) -> bool:
        """Tell whether the store can be reached. That of torchrun ends with torchrun."""
        try:
            with _connected():
                self._store.check(["alive"])
        except ConnectionError:
            return False
        return True


@contextmanager
def _connected() -> Iterator[None]:
    """Turn the errors of a lost store into ConnectionErrors.

    Raises:
        ConnectionError: the store cannot be reached.
    """
    try:
        yield
    except (DistError, RuntimeError) as error:  # a lost connection is a RuntimeError
        reason = str(error).partition("\n")[0]
        raise ConnectionError(f"the ranks cannot reach their store any more ({reason})") from error
