"""One start of a run: join the ranks, open the folder, train, leave."""

from __future__ import annotations

import logging

import torch

from fusionseg.config import RunConfig
from fusionseg.distributed.batch_arithmetic import accumulation_steps
from fusionseg.distributed.world import World
from fusionseg.runs.cases import RunCases, open_run
from fusionseg.runs.folder import RunFolder
from fusionseg.training.observers.profile_range import check_profile
from fusionseg.training.trainer import Trainer
from fusionseg.utils.errors import TrainingStopped
from fusionseg.utils.logs import log_to_file, start_logging

log = logging.getLogger("fusionseg")


def train(config: RunConfig, patience_s: float = 0.0) -> str:
    """Train or go on training; the status: completed, plateau, or interrupted.

    Args:
        patience_s: how long to wait for an earlier process of the same run to leave its folder.

    Raises:
        UserError: the request cannot be carried out.
        TrainingStopped: the training cannot go on.
    """
    world = World.from_environment(config.device)
    start_logging(world.rank)
    folder = RunFolder(config)
    opened: list[RunCases] = []
    try:
        world.rank_zero_first("open the run folder", lambda: opened.append(_open(folder, config, world, patience_s)))
        cases = world.broadcast_object(opened[0] if opened else None)
        if world.launch.warning:
            log.warning("%s", world.launch.warning)
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


def _open(folder: RunFolder, config: RunConfig, world: World, patience_s: float) -> RunCases:
    # What can be refused at a glance is refused before there is a folder.
    accumulation_steps(config, world.size)
    check_profile(config.profile, world.device)
    folder.check(config)
    begun = folder.has_checkpoints()
    cases = open_run(config, folder)
    folder.lock(patience_s)
    folder.check(config)
    if folder.has_checkpoints() and not begun:  # another process has trained here until now
        cases = open_run(config, folder)
    folder.write_config(config)
    log_to_file(folder.log)
    return cases
