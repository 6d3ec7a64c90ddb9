"""A rank of a submitted run: `python -m fusionseg.jobs.worker RUN_FOLDER`, alone or under torchrun.

The configuration is the one in the folder. A run that was told to save and leave ends with status 0: it is for the
job, which looks at the run's records, to decide what follows, and torchrun must not start it again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fusionseg.entry import DONE, run

PATIENCE_S = 60.0
"""How long a restarted run waits for its predecessor to leave the folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train; the exit status."""
    (folder,) = sys.argv[1:] if argv is None else argv

    def work() -> int:
        from fusionseg.engine.run_folder import load_run_config
        from fusionseg.engine.session import train

        train(load_run_config(Path(folder)), PATIENCE_S)
        return DONE

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
