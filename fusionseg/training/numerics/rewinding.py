"""The way back after a spike of the loss: to a checkpoint before it, and on with other samples."""

from __future__ import annotations

import logging

from fusionseg.training.numerics.loss_spikes import LossSpikes, Spike
from fusionseg.training.observers.recorder import Recorder
from fusionseg.training.training_state import TrainingCheckpoints, TrainingState
from fusionseg.utils.errors import TrainingStopped

log = logging.getLogger("fusionseg")


def rewind(
    spike: Spike, state: TrainingState, spikes: LossSpikes, checkpoints: TrainingCheckpoints, recorder: Recorder
) -> TrainingState | None:
    """Go back to the newest checkpoint before a spike, and leave out the samples from there to the spike.

    The checkpoint is written again with what is left out, and those after it are deleted: a run that is killed
    afterwards goes on in the same way. Killed before, it finds the same spike again. The best score and its weights
    stay, because they were validated. If the last rewind went to this checkpoint too, the one before it is taken where
    there is one. The loss of the spike is one of those that the next ones are compared with. All ranks call it.

    Args:
        spike: the spike.
        state: of the training, with the step at which the spike was found.
        spikes: of the run.
        checkpoints: of the run.
        recorder: of this start.

    Returns:
        The state at the checkpoint; None if there is none before the spike, and the training goes on as it is.

    Raises:
        TrainingStopped: the run has gone back too often.
    """
    if spikes.rewinds >= spikes.config.rewinds:
        raise TrainingStopped(
            f"train.spikes: step {spike.step}: {spike}, after {spikes.rewinds} rewinds, as many as"
            " train.spikes.rewinds allows: start a run under another name with a lower optim.lr, or set"
            " train.spikes.action=warn or a higher train.spikes.rewinds to go on from the last checkpoint"
        )
    rewinds, next_sample = spikes.rewinds + 1, spikes.stream_step(state.step)
    losses = [*spikes.rewound, spike.loss]
    avoid = spikes.left_out[-1][0] if spikes.left_out else None
    checkpoints.finish()
    # No rank writes the checkpoint again before all have read it.
    with checkpoints.world.wait_for_all(f"go back before step {spike.step}, rewind {rewinds}"):
        restored = checkpoints.restore(at_most=spike.first - 1, avoid=avoid)
    if restored is None:
        log.warning("train.spikes: there is no checkpoint before step %d: the training goes on", spike.first)
        return None
    before = restored[0]
    before.best = state.best
    count = next_sample - spikes.stream_step(before.step)
    spikes.rewinds = rewinds
    spikes.leave_out(before.step, count)
    spikes.learn(losses)
    recorder.rewind(before.step, before.validated)
    if checkpoints.takes_part:
        checkpoints.save_rewound(before, recorder.spent())
    log.warning(
        "train.spikes: back to step %d (rewind %d of %d): the samples of %d steps are left out",
        before.step,
        rewinds,
        spikes.config.rewinds,
        count,
    )
    return before
