"""Training: `python -m fusionseg.train --config C [key.path=value ...]`, or the same under torchrun."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fusionseg.api.callable_module import make_callable
from fusionseg.commands.training import TRAIN, run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Train a segmentation network and return the exit status.

    Args:
        argv: the words after the program's name; None takes those of this process.
    """
    return run_program(TRAIN, argv)


make_callable(__name__)  # fusionseg.train(...) is a function of the API

if __name__ == "__main__":
    sys.exit(main())
