"""One start of a run: join the ranks, open the folder, train, leave."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from fusionseg.config import RunConfig
from fusionseg.distributed.batch_arithmetic import accumulation_steps
from fusionseg.distributed.world import World
from fusionseg.runs.cases.opening import RunCases, open_cases
from fusionseg.runs.early_checks import check_places
from fusionseg.runs.folder import RunFolder, run_folder_of
from fusionseg.runs.run_config import write_run_config
from fusionseg.training.observers.profile_range import check_profile
from fusionseg.training.optimizer import warmup_warning
from fusionseg.training.outside_check import check_outside_parts, with_present_sources
from fusionseg.training.trainer import Trainer
from fusionseg.utils.errors import Problems, TrainingStopped, UserError
from fusionseg.utils.logs import log_to_file, start_logging

log = logging.getLogger("fusionseg")


def train(config: RunConfig, patience_s: float = 0.0, make_data: Callable[[], None] | None = None) -> str:
    """Train or resume a run; the status: completed, plateau, or interrupted (see `RunStatus`).

    Args:
        patience_s: how long to wait for an earlier process of the same run to leave its folder.
        make_data: makes the data set if there is none; rank 0 calls it while the others wait.

    Raises:
        UserError: the request cannot be carried out.
        TrainingStopped: the training cannot go on.
    """
    config = with_present_sources(config)
    world = _join(config)
    start_logging(world.rank)
    folder = RunFolder(run_folder_of(config))
    opened: list[RunCases] = []
    try:
        world.rank_zero_first(
            "open the run folder", lambda: opened.append(_open(folder, config, world, patience_s, make_data))
        )
        cases = world.broadcast_object(opened[0] if opened else None)
        for warning in filter(None, (world.launch.warning, warmup_warning(config) if world.is_rank_zero else "")):
            log.warning("%s", warning)
        log.info("run: %s", folder.path)
        return Trainer(config, world, folder, cases).run()
    except torch.OutOfMemoryError as error:
        raise TrainingStopped(
            f"out of memory on {world.device}: set train.checkpoint_activations=true (Swin networks) or"
            " cache.device=host; or, under another name, lower train.micro_batch (the accumulation rises, the training"
            " stays the same) or use a smaller data.patch; in a validation, lower validate.window_batch"
            f" ({str(error).splitlines()[0]})"
        ) from None
    finally:
        folder.unlock()
        world.close()


def _open(
    folder: RunFolder, config: RunConfig, world: World, patience_s: float, make_data: Callable[[], None] | None
) -> RunCases:
    begun = folder.has_checkpoints()
    cases = _check(folder, config, world, make_data)
    folder.lock(patience_s)
    folder.check(config)
    if folder.has_checkpoints() and not begun:  # another process has trained here until now
        cases = open_cases(config, folder)
    write_run_config(folder.path, config)
    log_to_file(folder.paths.log)
    return cases


def _check(folder: RunFolder, config: RunConfig, world: World, make_data: Callable[[], None] | None) -> RunCases:
    """Open the cases of the run. All that can be refused before the run folder is made is refused here, together.

    Raises:
        UserError: with all problems.
    """
    problems, of_folder = Problems(), Problems()
    cases: RunCases | None = None
    with problems.collect():
        accumulation_steps(config, world.size)
    with problems.collect():
        check_profile(config.profile, world.device)
    with of_folder.collect():
        folder.check(config)
    with problems.collect():
        if not of_folder.found:
            folder.check_writable()
    with problems.collect():
        if of_folder.found:  # the cases of a run are those that its folder records
            check_places({"data": {"root": config.data.root}, "init_from": config.init_from, "output": None})
        else:
            if make_data is not None and not problems.found:
                make_data()
            cases = open_cases(config, folder)
    if cases is not None and not problems.found:
        dataset = cases.datasets[0].dataset
        with problems.collect():
            check_outside_parts(
                config, world.device, in_channels=len(dataset.channels), out_channels=dataset.num_classes
            )
    if of_folder.found or problems.found or cases is None:
        raise UserError([*of_folder.found, *problems.found])
    return cases


def _join(config: RunConfig) -> World:
    """Join the other ranks. A wrong device or environment is refused together with wrong paths.

    Raises:
        UserError: with all problems.
    """
    problems = Problems()
    with problems.collect():
        return World.from_environment(config.device)
    with problems.collect():
        check_places(config.to_dict())
    raise UserError(problems.found)
