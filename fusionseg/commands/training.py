"""Command line of `python -m fusionseg.train` and `python -m fusionseg.pretrain`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE, FAILED, run
from fusionseg.utils.streams import PATIENCE_S, protect


def training_command(
    program: str, description: str, examples: str, argv: Sequence[str] | None, *, pretraining: bool
) -> int:
    """Arguments -> configuration -> engine; the exit status."""
    protect()
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE|NAME", help="YAML file of the run, or the name of a shipped one"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that win over the file's")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the run would be, and its cost; train nothing"
    )
    arguments = parser.parse_intermixed_args(argv)
    return run(lambda: _train(arguments.config, arguments.overrides, arguments.dry_run, pretraining))


def _train(file: str, overrides: list[str], dry_run: bool, pretraining: bool) -> int:
    from fusionseg.config import load_config
    from fusionseg.config.renaming import Dropped

    lost: list[Dropped] = []
    config = load_config(file, overrides, lost)
    if config.pretrain is not None and not pretraining:
        raise UserError(f"{file}: has a `pretrain` section: start it by python -m fusionseg.pretrain")
    if config.pretrain is None and pretraining:
        raise UserError(
            f"{file}: has no `pretrain` section, so it is a segmentation: start it by python -m fusionseg.train, or add"
            " one (the shipped configuration mae_swin shows it)"
        )
    if dry_run:
        from fusionseg.training.dry_run import describe

        print("\n".join([describe(config, os.environ), *map(str, lost)]))
        return DONE
    # A file that extends another says what it is; who changes a name on the command line may expect the rest to stay.
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        for entry in lost:
            if not entry.from_file:
                print(f"warning: {entry}", file=sys.stderr)
    protect(PATIENCE_S)
    from fusionseg.training.start import train

    return DONE if train(config) in ("completed", "plateau") else FAILED
