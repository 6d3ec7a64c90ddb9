"""The programs `fusionseg train` and `fusionseg pretrain`, which `python -m` and torchrun start as modules too."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusionseg.commands.base import Commands, Parser, add_trust, execute, loading
from fusionseg.commands.demonstration import Demonstration
from fusionseg.runs.continuation.changes import BRANCH, EXTEND, Continuation, config_of_branch
from fusionseg.utils.errors import Problems, UserError
from fusionseg.utils.exit_status import DONE, FAILED
from fusionseg.utils.logs import RESULT, log
from fusionseg.utils.streams import PATIENCE_S, protect

if TYPE_CHECKING:
    from fusionseg.config import RunConfig
    from fusionseg.config.renaming import Dropped


@dataclass(frozen=True)
class Program:
    """One of the two training programs, `train` and `pretrain`."""

    command: str
    """Name of the command of `fusionseg`."""
    text: str
    """One line for the list of commands."""
    examples: str
    demonstration: Demonstration
    """The run that is trained without `--config`."""
    pretraining: bool
    """True for the program that needs a `pretrain` section, False for the one that refuses it."""

    @property
    def description(self) -> str:
        """The text as a sentence."""
        return f"{self.text[0].upper()}{self.text[1:]}."

    @property
    def module(self) -> str:
        """The module that `python -m` and `torchrun -m` start."""
        return f"fusionseg.{self.command}"


TRAIN = Program(
    "train",
    "train a segmentation network; without --config, a demonstration on synthetic data",
    """examples:
  fusionseg train                        # a demonstration, some minutes on two CPU cores
  fusionseg train --config hippocampus_unet data.root=/data/Task04_Hippocampus
  torchrun --nproc_per_node=2 -m fusionseg.train --config parse_fusion_od data.root=/data/PARSE
  python -m fusionseg.train --config parse_fusion_od data.root=/data/PARSE --dry-run

`fusionseg train` and `python -m fusionseg.train` are the same program. Starting the same command again continues a run
that was interrupted. Going on with other settings takes a word:
  fusionseg train --config unet.yaml train.steps=2000 --extend                 # the same run, longer
  fusionseg train --branch runs/unet name=low train.steps=2000 optim.lr=1e-4   # a new folder, from its checkpoint""",
    Demonstration(
        "demo",
        "trains a small Swin Fusion UNETR to segment the pulmonary arteries of synthetic chest CTs",
        "hippocampus_unet",
    ),
    pretraining=False,
)
PRETRAIN = Program(
    "pretrain",
    "pre-train the encoder of a network by masked reconstruction, without labels; without --config, a demonstration",
    """examples:
  fusionseg pretrain                     # a demonstration, some minutes on two CPU cores
  torchrun --nproc_per_node=2 -m fusionseg.pretrain --config mae_swin data.root=/data/scans
  python -m fusionseg.pretrain --config mae_swin data.root=/data/CT \\
    'data.also=[{root: /data/MRI, intensity: {mode: zscore}}]' pretrain.ratio=0.75

Labels are not needed. A segmentation network starts from the pre-trained encoder by
  fusionseg train --config ... init_from=runs/mae_swin""",
    Demonstration(
        "demo_pretrain",
        "pre-trains the encoder of a small Swin UNETR on synthetic chest CTs: it fills in hidden blocks",
        "mae_swin",
    ),
    pretraining=True,
)


def add_train(commands: Commands) -> None:
    """Add the command `train`."""
    _add(commands, TRAIN)


def add_pretrain(commands: Commands) -> None:
    """Add the command `pretrain`."""
    _add(commands, PRETRAIN)


def run_program(program: Program, argv: Sequence[str] | None) -> int:
    """Run `python -m fusionseg.train` or `python -m fusionseg.pretrain` and return the exit status.

    Args:
        program: `TRAIN` or `PRETRAIN`.
        argv: the words after the program's name; None takes those of this process.
    """
    parser = Parser(prog=f"python -m {program.module}", description=program.description, epilog=program.examples)
    _add_arguments(parser, program)
    return execute(parser, argv)


def _add(commands: Commands, program: Program) -> None:
    parser = commands.add_parser(
        program.command, help=program.text, description=program.description, epilog=program.examples
    )
    _add_arguments(parser, program)


def _add_arguments(parser: Parser, program: Program) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE|NAME",
        help="YAML file of the run, or the name of a shipped one (default: a demonstration)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that win over the file's")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the run would be, and its cost; train nothing"
    )
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        EXTEND,
        action="store_true",
        help="go on in the folder of a run with changed settings: more steps, another learning rate or micro-batch",
    )
    words.add_argument(
        BRANCH,
        type=Path,
        metavar="RUN|CHECKPOINT",
        help="begin a new run folder (name=NAME) at the newest checkpoint of a run, or at this one, with its optimizer;"
        " without --config, with the configuration of that run",
    )
    add_trust(parser)
    parser.set_defaults(parser=parser, work=lambda arguments: _train(program, arguments))


def _check_code(config: Path) -> None:
    """Ask about code of others that the configuration of another run names: naming a run is not writing its settings.

    Raises:
        UserError: it names code that is not allowed.
    """
    from fusionseg.runs.run_config import stored_config
    from fusionseg.runs.trust.foreign_code import check_code

    check_code(stored_config(config.parent)[0], config)


def _train(program: Program, arguments: argparse.Namespace) -> int:
    overrides: list[str] = arguments.overrides
    continuation = Continuation(arguments.extend, arguments.branch)
    if arguments.config is None and continuation.branch is not None:
        arguments.config = str(config_of_branch(continuation.branch))
        _check_code(Path(arguments.config))
    file: str = arguments.config
    make_data: Callable[[], None] | None = None
    if file is None:
        file, root = program.demonstration.open(overrides)
        if root is not None:
            overrides = [f"data.root={root}", *overrides]
            make_data = program.demonstration.data_maker(root)
    from fusionseg.runs.early_checks import finished_message

    config, lost = _load(file, overrides)
    log.debug("configuration: %s%s", file, "".join(f"\n  {text}" for text in overrides))
    _refuse_other_program(program, file, config)
    if not arguments.dry_run and (text := finished_message(config, alone=_is_alone(), continuation=continuation)):
        log.log(RESULT, "%s", text)
        return DONE
    if arguments.config is None:
        program.demonstration.introduce(config, arguments.parser.prog, own_data=make_data is None)
    if arguments.dry_run:
        with loading():
            from fusionseg.training.dry_run import describe
        if make_data is not None:
            make_data()
        print("\n".join([describe(config, os.environ, continuation), *map(str, lost)]))
        return DONE
    for entry in lost:
        # A file that changes a name states the keys it wants. A user who changes a name alone may expect to keep them.
        if not entry.from_file:
            log.warning("%s", entry)
    protect(PATIENCE_S)
    from fusionseg.distributed.torchrun_watch import end_with_torchrun
    from fusionseg.runs.folder import patience_of_start
    from fusionseg.runs.records import RunStatus, has_finished

    end_with_torchrun(config.distributed.timeout_s)  # before the seconds of loading
    with loading():
        from fusionseg.training.start import train
    command = continuing_command(program, arguments)
    try:
        status = train(config, patience_of_start(os.environ), make_data, continuation)
    except KeyboardInterrupt:
        log.log(RESULT, "to go on from the last checkpoint: %s", command)
        raise
    if status == RunStatus.INTERRUPTED:
        log.log(RESULT, "to go on from here: %s", command)
    return DONE if has_finished(status) or status == RunStatus.STOPPED else FAILED


def _load(file: str, overrides: Sequence[str]) -> tuple[RunConfig, list[Dropped]]:
    """Load the configuration. If it is wrong, the message lists the wrong paths in it too.

    Raises:
        UserError: the configuration is wrong. The message lists all problems.
    """
    from fusionseg.config import load_config
    from fusionseg.config.loading import read_raw
    from fusionseg.runs.early_checks import check_places

    lost: list[Dropped] = []
    problems = Problems()
    with problems.collect():
        return load_config(file, overrides, lost), lost
    with problems.collect():
        check_places(read_raw(file, overrides)[0])
    raise UserError(problems.found)


def _refuse_other_program(program: Program, file: str, config: RunConfig) -> None:
    """Refuse a configuration that is for the other of the two programs.

    Raises:
        UserError: it has a `pretrain` section and the program is `train`, or it has none and the program is `pretrain`.
    """
    if config.pretrain is not None and not program.pretraining:
        raise UserError(f"{file}: has a `pretrain` section: start it by python -m fusionseg.pretrain")
    if config.pretrain is None and program.pretraining:
        raise UserError(
            f"{file}: has no `pretrain` section, so it is a segmentation: start it by python -m fusionseg.train, or add"
            " one (the shipped configuration mae_swin shows it)"
        )


def _is_alone() -> bool:
    """Tell whether this process is the only one of the run."""
    return all((os.environ.get(name) or "1") == "1" for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))


def continuing_command(program: Program, arguments: argparse.Namespace) -> str:
    """The command that continues this run, for the message at its interruption."""
    options = [*(["--config", arguments.config] if arguments.config else []), *arguments.overrides]
    options += [EXTEND] if arguments.extend else []
    options += [BRANCH, str(arguments.branch)] if arguments.branch is not None else []
    words = shlex.join(options)
    size, here = os.environ.get("WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE", "1")
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1" or size != here:
        return "start the same command on all nodes again"
    start = arguments.parser.prog if size == "1" else f"torchrun --nproc_per_node={here} -m {program.module}"
    return f"{start} {words}".rstrip()
