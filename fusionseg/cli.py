"""The program `fusionseg <command>`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fusionseg.commands.base import Parser, execute, subparsers
from fusionseg.commands.completion import add_completion
from fusionseg.commands.configs import add_models, add_schema
from fusionseg.commands.data import add_check, add_prepare, add_synth
from fusionseg.commands.jobs import add_cancel, add_doctor, add_status, add_submit
from fusionseg.commands.manifest import add_manifest
from fusionseg.commands.monitor import add_monitor
from fusionseg.commands.plan import add_plan
from fusionseg.commands.results.best import add_best
from fusionseg.commands.results.compare import add_compare
from fusionseg.commands.results.evaluate import add_evaluate
from fusionseg.commands.results.export import add_card, add_export
from fusionseg.commands.results.postprocess import add_postprocess
from fusionseg.commands.results.predict import add_predict
from fusionseg.commands.results.report import add_render, add_report
from fusionseg.commands.results.statistics import add_statistics
from fusionseg.commands.shipped import add_configs
from fusionseg.commands.tables import add_table
from fusionseg.commands.training import add_pretrain, add_train
from fusionseg.utils.errors import suggest
from fusionseg.utils.streams import protect
from fusionseg.utils.version import __version__

COMMANDS = (
    add_train,
    add_pretrain,
    add_synth,
    add_check,
    add_plan,
    add_prepare,
    add_evaluate,
    add_postprocess,
    add_predict,
    add_compare,
    add_statistics,
    add_best,
    add_report,
    add_render,
    add_export,
    add_card,
    add_submit,
    add_table,
    add_manifest,
    add_status,
    add_cancel,
    add_doctor,
    add_monitor,
    add_configs,
    add_models,
    add_schema,
)


def build_parser() -> Parser:
    """Build the parser of the program, with all commands."""
    parser = Parser(
        prog="fusionseg",
        description="Training of 3D medical image segmentation, on one device or on many.",
        epilog="help on a command:\n  fusionseg help train\n\na first training, on synthetic data:\n  fusionseg train",
    )
    parser.add_argument("--version", action="version", version=f"fusionseg {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    add_completion(commands, parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Args:
        argv: the words after `fusionseg`; None takes those of this process.
    """
    protect()
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if words and words[0] == "help":
        words = [*words[1:2], "--help"]
    command = next((word for word in words if not word.startswith("-")), None)
    names = list(subparsers(parser))
    if command is not None and command not in names:
        hint = suggest(command, ["help", *names], listed=False)
        parser.error(f"there is no command {command!r}: {hint} Commands: {', '.join(names)}")
    return execute(parser, words)


if __name__ == "__main__":
    sys.exit(main())
