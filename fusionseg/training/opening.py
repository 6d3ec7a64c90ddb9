"""The opening of a run: join the ranks, check everything that can be checked at once, open and lock the run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fusionseg.config import RunConfig
from fusionseg.distributed.batch_arithmetic import check_batch
from fusionseg.distributed.torchrun_watch import end_with_torchrun
from fusionseg.distributed.watchdog.watchdog import Limits
from fusionseg.distributed.world import World
from fusionseg.runs.cases.opening import RunCases, open_cases
from fusionseg.runs.continuation.branch import Branch, find_branch, make_branch
from fusionseg.runs.continuation.changes import PLAIN, Continuation
from fusionseg.runs.continuation.extension import record_extension, with_earlier_rate
from fusionseg.runs.early_checks import check_places
from fusionseg.runs.folder import RunFolder
from fusionseg.runs.paths import last_step
from fusionseg.runs.run_config import stored_config, with_found_micro_batch, write_run_config
from fusionseg.training.memory.micro_batch_choice import refuse_batch_norm, trial_config
from fusionseg.training.numerics.deterministic_operators import refuse_unfit_operators
from fusionseg.training.observers.profile_range import check_profile
from fusionseg.training.observers.sinks import check_sinks
from fusionseg.training.optimizer import rate_of
from fusionseg.training.outside_check import check_outside_parts
from fusionseg.utils.errors import Problems, UserError
from fusionseg.utils.logs import log, log_to_file


def join_ranks(config: RunConfig) -> World:
    """Join the other ranks. If this fails, the paths are checked too, so that all problems are reported together.

    Raises:
        UserError: the device or the environment is wrong; the message has the wrong paths too.
    """
    end_with_torchrun(config.distributed.timeout_s)
    problems = Problems()
    with problems.collect():
        section = config.distributed
        limits = None if section.hang_warn_s is None else Limits(section.hang_warn_s, section.hang_end_s)
        return World.from_environment(config.device, section.timeout_s, limits)
    with problems.collect():
        check_places(config.to_dict())
    raise UserError(problems.found)


def open_run_folder(
    folder: RunFolder,
    config: RunConfig,
    world: World,
    patience_s: float,
    make_data: Callable[[], None] | None,
    continuation: Continuation = PLAIN,
) -> RunCases:
    """Check a run, open its cases, lock its folder and write the configuration into it. Rank 0 calls it.

    Args:
        folder: the run folder.
        config: the configuration of the run.
        world: the ranks.
        patience_s: seconds to wait for an earlier process of the same run to leave its folder.
        make_data: makes the data set if there is none.
        continuation: the word of a start with another configuration.

    Raises:
        UserError: with all problems.
    """
    begun = folder.has_checkpoints()
    branch = None
    if continuation.branch is not None and not begun:
        branch = find_branch(continuation.branch, config)
    cases = _check(folder, config, world, make_data, continuation, None if branch is None else RunFolder(branch.run))
    folder.lock(patience_s)
    folder.check(config, continuation=continuation)
    if folder.has_checkpoints() and not begun:  # another process has trained here until now, and has recorded the cases
        cases = open_cases(config, folder)
    before, changes = None, []
    if branch is not None and not folder.has_checkpoints():
        before, changes = branch.config, make_branch(branch, folder.path, config)
    elif folder.has_checkpoints():
        before = stored_config(folder.path)[0]
        changes = record_extension(folder.path, config)
    write_run_config(folder.path, config if before is None else with_found_micro_batch(config, before))
    log_to_file(folder.paths.log)
    if before is not None and (changes or branch is not None):
        _log_changes(folder, before, changes, config, branch)
    return cases


def _log_changes(
    folder: RunFolder, before: dict[str, Any], changes: Sequence[str], config: RunConfig, branch: Branch | None
) -> None:
    """Log how a run goes on with another configuration, with the learning rate before and after."""
    what = "extended" if branch is None else f"branch of {branch.checkpoint}"
    step, old = last_step(folder.path), with_earlier_rate(before, config)
    log.info("%s, from step %d: %s", what, step, "; ".join(changes) or "no value has changed")
    if any(line.startswith("train.global_batch: ") for line in changes):
        log.warning(
            "train.global_batch has changed: the order of the cases goes on at another place, so some come again or are"
            " left out this time"
        )
    if step > 0:
        log.info(
            "learning rate: %.4g in step %d under %d steps, %.4g in the next step under %d steps",
            rate_of(old, step - 1),
            step,
            old.train.steps,
            rate_of(config, step),
            config.train.steps,
        )


def _check(
    folder: RunFolder,
    config: RunConfig,
    world: World,
    make_data: Callable[[], None] | None,
    continuation: Continuation,
    origin: RunFolder | None,
) -> RunCases:
    """Open the cases of the run, and check everything that can be checked before the run folder is made.

    Args:
        folder: the run folder.
        config: the configuration of the run.
        world: the ranks.
        make_data: makes the data set if there is none.
        continuation: the word of a start with another configuration.
        origin: the run folder that a branch has its cases from; None for another start.

    Raises:
        UserError: with all problems.
    """
    problems, of_folder = Problems(), Problems()
    cases: RunCases | None = None
    with problems.collect():
        check_batch(config, world.size)
    with problems.collect():
        check_profile(config.profile, world.device)
    with problems.collect():
        check_sinks(config.log)
    with of_folder.collect():
        folder.check(config, continuation=continuation)
    with problems.collect():
        if not of_folder.found:
            folder.check_writable()
    with problems.collect():
        if of_folder.found:  # the cases are not read from a folder that is refused
            check_places({"data": {"root": config.data.root}, "init_from": config.start_weights, "output": None})
        else:
            if make_data is not None and not problems.found:
                make_data()
            cases = open_cases(config, origin or folder)
    if cases is not None and not problems.found:
        dataset = cases.datasets[0].dataset
        trial, channels = trial_config(config), len(dataset.channels)
        with problems.collect():
            check_outside_parts(
                trial,
                world.device,
                in_channels=channels,
                scheme=dataset.scheme,
                partial=dataset.is_partly_annotated,
            )
        with problems.collect():
            refuse_unfit_operators(trial, world.device, in_channels=channels, scheme=dataset.scheme)
        if not problems.found:  # a network that failed on its trial is not built again
            refuse_batch_norm(config, in_channels=channels, scheme=dataset.scheme)
    if of_folder.found or problems.found or cases is None:
        raise UserError([*of_folder.found, *problems.found])
    return cases
