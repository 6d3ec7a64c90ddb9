"""A disk without room, for tests of what a run does then."""

from __future__ import annotations

from pathlib import Path


def fill(disk: Path) -> None:
    """Take all that is left of a disk, by the file `filler`."""
    with (disk / "filler").open("ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
