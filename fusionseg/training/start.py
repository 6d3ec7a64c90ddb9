"""One start of a run: join the ranks, open the run folder, build the parts of the training, train, write the end."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextlib import closing, nullcontext

import torch

from fusionseg.config import RunConfig
from fusionseg.distributed.batch_arithmetic import accumulation_steps, batch_arithmetic, check_batch
from fusionseg.distributed.cpu_binding import bind_to_near_cpus
from fusionseg.distributed.lost_rank import naming_lost_rank
from fusionseg.distributed.rank_info import rank_info, threads_per_rank
from fusionseg.distributed.world import World
from fusionseg.models.implementation import chosen_implementation, describe_implementation, implementation_of
from fusionseg.models.placement import uses_channels_last
from fusionseg.models.sharding.parts import LocalParts
from fusionseg.observability.ranges import annotate
from fusionseg.runs.accounts.history import record_hang, write_start
from fusionseg.runs.cases.opening import RunCases
from fusionseg.runs.cases.split import write_split
from fusionseg.runs.continuation.changes import PLAIN, Continuation
from fusionseg.runs.early_checks import finished_text
from fusionseg.runs.environment import write_environment
from fusionseg.runs.folder import RunFolder, run_folder_of
from fusionseg.runs.paths import BEST
from fusionseg.runs.records import RunStatus, has_finished, last_end, rewind_records
from fusionseg.runs.trust.known_code import remember_own
from fusionseg.training.data import open_training_data
from fusionseg.training.ending.end import is_interrupted, patience_s, train_and_save, write_end_record
from fusionseg.training.ending.signals import Lead, StopSignals
from fusionseg.training.memory.micro_batch_choice import choose_micro_batch
from fusionseg.training.memory.out_of_memory import (
    device_of_error,
    is_out_of_memory,
    out_of_memory_text,
    save_snapshot,
    write_note,
)
from fusionseg.training.memory.shard_units import find_units
from fusionseg.training.micro_batches import MicroBatches
from fusionseg.training.network import build_network, distribute, start_from
from fusionseg.training.numerics.determinism import naming_operators, reserve_workspace
from fusionseg.training.numerics.loss_spikes import LossSpikes
from fusionseg.training.numerics.weight_averages import open_averages
from fusionseg.training.observers.gpu_watch import GpuWatch
from fusionseg.training.observers.profile_range import ProfileRange
from fusionseg.training.observers.recorder import Recorder, Spent
from fusionseg.training.observers.skipped_steps import SkippedSteps
from fusionseg.training.observers.stragglers import Stragglers
from fusionseg.training.observers.utilisation import measure_utilisation
from fusionseg.training.opening import join_ranks, open_run_folder
from fusionseg.training.optimizer import build_optimizer, warmup_warning
from fusionseg.training.outside_check import with_present_sources
from fusionseg.training.precision import choose_precision, set_kernels
from fusionseg.training.step import TrainStep
from fusionseg.training.step_graphs import build_step_graphs, open_recorder
from fusionseg.training.tasks.choice import build_task
from fusionseg.training.trainer import Trainer
from fusionseg.training.training_state import TrainingCheckpoints
from fusionseg.utils.errors import TrainingStopped
from fusionseg.utils.logs import RESULT, start_logging

log = logging.getLogger("fusionseg")


def train(
    config: RunConfig,
    patience_s: float = 0.0,
    make_data: Callable[[], None] | None = None,
    continuation: Continuation = PLAIN,
) -> str:
    """Start a run, or continue it if its folder holds checkpoints.

    Args:
        config: the configuration of the run.
        patience_s: seconds to wait for an earlier process of the same run to leave its folder.
        make_data: makes the data set if there is none; rank 0 calls it while the other ranks wait.
        continuation: the word of a start that goes on from a checkpoint of another configuration.

    Returns:
        The status of the run, see `RunStatus`: "completed", "plateau" or "interrupted".

    Raises:
        UserError: the run cannot be started as it is configured.
        TrainingStopped: the training cannot continue.
    """
    reserve_workspace(config.train)  # before the device is used
    world = join_ranks(config)
    start_logging(world.rank)
    config = with_present_sources(config)
    remember_own(config.to_dict(), write=world.is_rank_zero)
    folder = RunFolder(run_folder_of(config))
    opened: list[RunCases] = []
    built: list[Trainer] = []
    try:
        world.rank_zero_first(
            "open the run folder",
            lambda: opened.append(open_run_folder(folder, config, world, patience_s, make_data, continuation)),
        )
        cases = world.broadcast_object(opened[0] if opened else None)
        _record_hangs(world, folder, 0)
        for warning in filter(None, (world.launch.warning, warmup_warning(config) if world.is_rank_zero else "")):
            log.warning("%s", warning)
        log.info("run: %s", folder.path)
        with naming_lost_rank():
            built.append(build_trainer(config, world, folder, cases))
            return run(built[0], folder)
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            world.hold()
            raise
        trainer = built[0] if built else None
        save_snapshot(folder.paths.out_of_memory(world.rank), device_of_error(error, world.device))
        text = out_of_memory_text(error, config, world, trainer)
        write_note(folder.paths.memory_note(world.rank), text)
        raise TrainingStopped(text) from None
    except BaseException:
        world.hold()
        raise
    finally:
        folder.unlock()
        world.close()


def build_trainer(config: RunConfig, world: World, folder: RunFolder, cases: RunCases) -> Trainer:
    """Build the parts of a training, each from those before it. All ranks call it.

    Args:
        config: the configuration of the run.
        world: the ranks.
        folder: the run folder.
        cases: the cases of the run, as `open_cases` found them.

    Raises:
        UserError: a part cannot be built as it is configured.
    """
    check_batch(config, world.size)
    if config.distributed.bind_cpus:
        bind_to_near_cpus(world.device)
    # Threads matter on a GPU too: the CPU cuts the patches if the cache is in host memory. torchrun sets one thread.
    torch.set_num_threads(config.train.threads or threads_per_rank(world))
    set_kernels(config.train, world.device)
    precision = choose_precision(config.train.precision, world.device)
    log.info("device: %s, precision %s (%s)", world.device, precision.name, precision.reason)
    if not config.train.chooses_micro_batch:
        log.info("batch: %s", batch_arithmetic(config, world.size))

    data = open_training_data(config, world, cases)
    config = choose_micro_batch(config, world, folder, data, precision)
    accumulation = accumulation_steps(config, world.size)
    task = build_task(config, data.scheme)
    model = build_network(
        task, config, world.device, in_channels=len(data.channels), out_channels=data.scheme.num_outputs
    )
    implementation = config.model.implementation
    if described := describe_implementation(model, implementation, world.device.type):
        log.info("implementation: %s", described)
    channels_last = uses_channels_last(config.train.channels_last, model, world.device.type)
    if config.train.channels_last == "auto":
        log.info("memory format: %s", "channels-last" if channels_last else "contiguous, which the norms need on a GPU")
    spikes = LossSpikes(config.train.spikes)
    micro_batches = MicroBatches(
        task.build_batches(data, world),
        data,
        world,
        micro_batch=config.train.micro_batch_samples,
        accumulation_steps=accumulation,
        channels_last=channels_last,
        stream_step=spikes.stream_step,
    )
    validation = None if data.split.validates_none else task.build_validation(data, precision, world)
    units: tuple[str, ...] = ()
    is_sharded = config.distributed.parallel == "fsdp" and world.size > 1
    if is_sharded:
        units = find_units(
            task,
            config,
            in_channels=len(data.channels),
            out_channels=data.scheme.num_outputs,
            device_type=world.device.type,
        )
    recorder = open_recorder(config, world)
    with recorder.stream() if recorder is not None else nullcontext():  # DDP keeps the stream that it is built on
        distributed = distribute(model, config, world, accumulation, units)
    parts = LocalParts(task.parameter_groups(model)) if is_sharded else None
    optimizer = build_optimizer(config.optim, task.parameter_groups(model) if parts is None else parts.groups)
    train_step = TrainStep(
        distributed,
        task.build_loss(),
        optimizer,
        precision,
        world,
        accumulation_steps=accumulation,
        clip_grad=config.train.clip_grad,
        cast_weights=(
            config.train.compile is False
            and not is_sharded
            and chosen_implementation(implementation, world.device.type) == "fused"
        ),
        parts=parts,
        graphs=None if recorder is None else build_step_graphs(recorder, config, world, distributed, optimizer),
        averages=open_averages(config.train, model),
    )
    if train_step.averages is not None:
        log.info("averaged weights: %s; they are validated, and %s has them", train_step.averages, BEST)
    lead = Lead()
    return Trainer(
        config=config,
        world=world,
        precision=precision,
        task=task,
        data=data,
        micro_batches=micro_batches,
        model=model,
        train_step=train_step,
        validation=validation,
        spikes=spikes,
        skipped_steps=SkippedSteps(micro_batches, world, config.train.max_skipped),
        profile=ProfileRange(config.profile, world, folder.paths.profile),
        checkpoints=TrainingCheckpoints(config, folder, world, data, task, model, train_step, spikes, lead),
        lead=lead,
    )


def run(trainer: Trainer, folder: RunFolder) -> str:
    """Restore the newest checkpoint, train to the end and write the end record; return the status."""
    config, world, data = trainer.config, trainer.world, trainer.data
    restored = trainer.checkpoints.restore()
    if restored is None:
        start_from(trainer.model, config, data.channels)
        if trainer.train_step.averages is not None:
            trainer.train_step.averages.restart()
        spent = Spent()
    else:
        trainer.state, spent = restored
    if world.is_rank_zero:
        write_split(folder.path, data.split)
    status, reason = trainer.end()
    step = trainer.state.step
    if status and world.broadcast_object(_is_recorded_as_finished(folder)):
        log.log(RESULT, "%s", finished_text(config, folder.path, status, step))
        return status
    ranks = world.all_gather_object(rank_info(world))
    _record_hangs(world, folder, step)
    if world.is_rank_zero:
        write_start(folder.path, step, ranks)
        rewind_records(folder.path, step, validated=trainer.state.validated)
    with annotate("cache"), world.wait_for_all("load the cases of the first step"):
        data.cache.advance(trainer.spikes.stream_step(step))
    if world.is_rank_zero:
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        write_environment(folder.path, ranks, parameters, implementation_of(trainer.model))
    utilisation = None
    if world.is_rank_zero:
        utilisation = measure_utilisation(
            trainer.task,
            config,
            in_channels=len(data.channels),
            out_channels=data.scheme.num_outputs,
            precision=trainer.precision,
            accumulation_steps=trainer.micro_batches.accumulation_steps,
            device=world.device,
        )
    watch = GpuWatch(config, world, folder.path, folder.paths.pictures)
    score = trainer.task.info.score
    stragglers = Stragglers(world, [rank["host"] for rank in ranks])
    recorder = Recorder(
        config,
        world,
        folder,
        watch,
        score,
        step=step,
        spent=spent,
        utilisation=utilisation,
        stragglers=stragglers,
        failures=trainer.checkpoints.failures,
    )
    trainer.checkpoints.writer.write_records = recorder.sync
    # Signals are handled until the end record is written: a scheduler may repeat its signal until the process ends.
    with StopSignals() as signals, closing(data), closing(recorder), closing(trainer.checkpoints):
        failures = trainer.checkpoints.failures
        failures.is_stopping = lambda: signals.received != 0
        try:
            if not status:
                with watch, recorder.progress, trainer.profile, naming_operators(), naming_lost_rank():
                    status, reason = train_and_save(trainer, signals, recorder)
            try:
                write_end_record(trainer, recorder, folder, status, reason, patience_s(status))
            except TrainingStopped as error:
                if not is_interrupted(status, signals, failures):
                    raise
                log.warning("no end record: %s", error)
                return RunStatus.INTERRUPTED
            return status
        except BaseException as error:
            world.hold()
            # The end record names the error: whoever looks at the run folder afterwards finds it there.
            first_line = str(error).partition("\n")[0]
            reason = first_line if isinstance(error, TrainingStopped) else f"{type(error).__name__}: {first_line}"
            try:
                write_end_record(trainer, recorder, folder, RunStatus.FAILED, reason, patience_s=0.0)
            except TrainingStopped as second:  # on a full disk, which may have ended the training itself
                log.warning("no end record: %s", second)
            raise


def _record_hangs(world: World, folder: RunFolder, step: int) -> None:
    """Let the watchdog write into the run folder, which this run has locked.

    Args:
        world: the ranks.
        folder: the run folder.
        step: steps that are done at least.
    """
    if world.watchdog is not None:
        world.watchdog.place(folder.paths.hangs, functools.partial(record_hang, folder.path, step))


def _is_recorded_as_finished(folder: RunFolder) -> bool:
    end = last_end(folder.path)
    return end is not None and has_finished(end["status"])
