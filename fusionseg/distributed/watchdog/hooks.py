"""Functions that run before the watchdog ends a process. Imports nothing of torch."""

from __future__ import annotations

from collections.abc import Callable

before_exit: list[Callable[[], None]] = []
"""Called in the rank that judges before it ends its process, which skips the clean-up of Python. A job adds its end."""
