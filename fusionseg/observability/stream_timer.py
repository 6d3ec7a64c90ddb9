"""Time that the stream of a GPU spends on a part of the step."""

from __future__ import annotations

from types import TracebackType
from typing import Any


class StreamTimer:
    """Context manager that adds up the time of the current stream of a GPU between its entry and its exit.

    This is the time that the following work of the stream waits for the part: the kernels of the part, and the time in
    which the stream is empty because the host has not queued them yet. Nothing waits for the device until `take`.

    Args:
        enabled: False measures nothing.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._open: Any = None
        self._measured: list[tuple[Any, Any]] = []
        self._free: list[Any] = []

    def __enter__(self) -> None:
        if self.enabled:
            self._open = self._event()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled:
            self._measured.append((self._open, self._event()))

    def take(self) -> float | None:
        """Wait for the device and return the seconds since the last call; None if nothing is measured."""
        if not self.enabled:
            return None
        measured, self._measured = self._measured, []
        seconds = 0.0
        for start, end in measured:
            end.synchronize()
            seconds += start.elapsed_time(end) / 1e3
            self._free += [start, end]
        return seconds

    def _event(self) -> Any:
        import torch  # takes seconds to import, and most users of this room do without

        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record()
        return event
