"""`fusionseg <command>`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from fusionseg import __version__
from fusionseg.commands.configs import add_models, add_schema
from fusionseg.commands.data import add_check, add_prepare, add_synth
from fusionseg.commands.jobs import add_cancel, add_doctor, add_status, add_submit
from fusionseg.commands.monitor import add_monitor
from fusionseg.commands.results import add_compare, add_evaluate, add_predict
from fusionseg.commands.shipped import add_configs
from fusionseg.utils.exit_status import DONE, FAILED, run
from fusionseg.utils.streams import lost_output, protect

COMMANDS = (
    add_synth,
    add_check,
    add_prepare,
    add_evaluate,
    add_predict,
    add_compare,
    add_submit,
    add_status,
    add_cancel,
    add_doctor,
    add_monitor,
    add_configs,
    add_models,
    add_schema,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    protect()
    parser = argparse.ArgumentParser(
        prog="fusionseg",
        description="Training of 3D medical image segmentation. Train with: python -m fusionseg.train --help",
    )
    parser.add_argument("--version", action="version", version=f"fusionseg {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    arguments, rest = parser.parse_known_args(argv)
    # argparse gives the overrides up at the first option after them: what is left over are the others.
    if rest and (any(text.startswith("-") for text in rest) or not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    work: Callable[[argparse.Namespace], int] = arguments.work

    def quietly() -> int:
        from fusionseg.utils.logs import start_logging

        start_logging()
        return work(arguments)

    status = run(quietly)
    if status == DONE and (reason := lost_output()) is not None:
        print(f"error: standard output: {reason}: what the command printed there is incomplete", file=sys.stderr)
        return FAILED
    return status


if __name__ == "__main__":
    sys.exit(main())
