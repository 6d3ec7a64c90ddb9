"""The choice of `train.micro_batch: auto`: the largest number of samples that fits into the memory of every rank."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fusionseg.config import RunConfig
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.distributed.batch_arithmetic import batch_arithmetic, possible_micro_batches
from fusionseg.distributed.rank_info import rank_info
from fusionseg.distributed.world import World
from fusionseg.observability.ranges import progressed, silence
from fusionseg.runs.environment import read_environment
from fusionseg.runs.folder import RunFolder
from fusionseg.runs.run_config import found_micro_batch, stored_config, write_run_config
from fusionseg.training.data import TrainingData
from fusionseg.training.memory.estimate import MemoryEstimate, estimate_memory
from fusionseg.training.memory.micro_batch_trial import step_failure
from fusionseg.training.network import build_weightless_network
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.choice import build_task
from fusionseg.utils.errors import UserError
from fusionseg.utils.machine import available_memory_bytes
from fusionseg.utils.tables import gigabytes

log = logging.getLogger("fusionseg")

SHARE = 0.8
"""Share of the free memory that an estimate may take, where no step is tried."""
DOUBT = 1.25
"""A step is not tried where its estimate is this many times the free memory."""
RESERVE = 0.05
"""Share of the free memory of a GPU that stays free while a step is tried: memory fragments in a long training."""


@dataclass(frozen=True)
class _Found:
    """The number that fits on a rank, and the reason in words."""

    samples: int
    reason: str


def trial_config(config: RunConfig) -> RunConfig:
    """The configuration with micro-batches of one sample in place of `auto`, for checks before the choice.

    Args:
        config: the configuration of the run.
    """
    return with_micro_batch(config, 1) if config.train.micro_batch == "auto" else config


def with_micro_batch(config: RunConfig, samples: int) -> RunConfig:
    """The configuration with a number that was found for `train.micro_batch: auto`.

    Args:
        config: the configuration of the run.
        samples: the number.
    """
    return config.model_copy(update={"train": config.train.with_micro_batch(samples)})


def refuse_batch_norm(config: RunConfig, *, in_channels: int, scheme: LabelScheme) -> None:
    """Refuse `train.micro_batch: auto` for a network with batch norm, also for one from outside.

    Args:
        config: the configuration of the run; nothing is done if it states a number.
        in_channels: channels of the images.
        scheme: the classes and the outputs of the data set.

    Raises:
        UserError: the network has batch norm.
    """
    if not config.train.chooses_micro_batch:
        return
    config = trial_config(config)
    model = build_weightless_network(build_task(config, scheme), config, in_channels, scheme.num_outputs)
    name = next((name for name, module in model.named_modules() if isinstance(module, _BatchNorm)), None)
    if name is not None:
        raise UserError(
            f"train.micro_batch: auto would give another training on another device, because {config.model.name} has"
            f" batch norm ({name}), whose statistics depend on micro_batch; set train.micro_batch to a number"
        )


def choose_micro_batch(
    config: RunConfig, world: World, folder: RunFolder, data: TrainingData, precision: Precision
) -> RunConfig:
    """Choose the number for `train.micro_batch: auto`, and write it into the run folder. All ranks call it.

    A GPU tries a training step, from the largest number on that the estimate does not rule out. On a CPU the estimate
    decides, because a host without memory raises no error but kills the process; so it does for a divided network
    (fsdp), where a rank that fails would leave the others in a collective operation. The number 1 is never tried. A
    resumed run tries the number that it has had first, if its devices are the same: its steps then stay the same to the
    last bit.

    Args:
        config: the configuration of the run; one that states a number is returned as it is.
        world: the ranks.
        folder: the run folder.
        data: the data of the run, loaded.
        precision: of the forward pass.
    """
    if not config.train.chooses_micro_batch:
        return config
    candidates = possible_micro_batches(config, world.size)
    names = [str(name) for name in world.all_gather_object(rank_info(world)["name"])]
    most, why = world.broadcast_object(_limit(folder, names) if world.is_rank_zero else None)
    tried = [samples for samples in candidates if most is None or samples <= most]
    with world.wait_for_all("choose train.micro_batch"):
        own = _choose(config, world, data, precision, tried)
    everywhere: list[_Found] = world.all_gather_object(own)
    least = min(range(world.size), key=lambda rank: everywhere[rank].samples)
    found = everywhere[least]
    config = with_micro_batch(config, found.samples)
    where = f" on rank {least}" if found.samples < max(one.samples for one in everywhere) else ""
    log.info("micro_batch: %d of %d (auto%s%s: %s)", found.samples, candidates[0], why, where, found.reason)
    log.info("batch: %s", batch_arithmetic(config, world.size))
    if world.is_rank_zero:
        write_run_config(folder.path, config)
        for note in folder.paths.memory_notes():  # from now on the configuration has the smaller number
            note.unlink(missing_ok=True)
    return config


def _limit(folder: RunFolder, names: Sequence[str]) -> tuple[int | None, str]:
    """The largest number that is tried, and the reason in words.

    It is the number in the configuration of the run folder, or a smaller one if the training with it ran out of memory.

    Args:
        folder: the run folder.
        names: the device of each rank.

    Returns:
        None and an empty text if there is no number yet, or if the run has had it on other devices.
    """
    number = found_micro_batch(stored_config(folder.path)[0]) if folder.paths.config.exists() else None
    before = read_environment(folder.path).get("ranks")
    devices = [one.get("name") for one in before if isinstance(one, dict)] if isinstance(before, list) else None
    if number is None or devices not in (None, list(names)):
        return None, ""
    if folder.paths.memory_notes():
        return max(1, number - 1), f", below {number}, with which the start before ran out of memory"
    # Without a device, the number is that of another run, whose configuration this one has.
    return (None, "") if devices is None else (number, f", at most {number} as in {folder.paths.config.name}")


def _choose(
    config: RunConfig, world: World, data: TrainingData, precision: Precision, candidates: Sequence[int]
) -> _Found:
    """Choose the number for this rank.

    Args:
        config, world, data, precision: see `choose_micro_batch`.
        candidates: the largest first, down to 1.
    """
    if len(candidates) == 1:
        return _Found(1, "no other number divides the samples")
    estimates = Estimates(config, data.scheme, len(data.channels), precision, world.size)
    free = free_bytes(world)
    tries = tries_steps(config, world)
    limit = free * (DOUBT if tries else SHARE)
    fitting = largest_fitting(candidates, lambda samples: estimates.of(samples).tensors <= limit)
    samples, failed = fitting[0], ""
    if tries:
        for samples in fitting:
            if samples == 1:
                break
            failure = step_failure(
                with_micro_batch(config, samples),
                world,
                data,
                precision,
                held=_beside_the_step(config, world, estimates.of(samples)) + int(RESERVE * free),
            )
            if not failure:
                break
            failed = f"a step of {samples} {failure}"
            progressed()
    allowed = f"{gigabytes(free)} are free on {world.device}" + (
        "" if tries else f", of which {SHARE:.0%} may be taken"
    )
    larger = [one for one in candidates if one > samples]
    if not failed:
        failed = estimates.text(larger[-1] if larger else samples)
    if samples == 1 and not tries and estimates.of(1).tensors > limit:
        log.warning("micro_batch: %s, and %s: the training may run out of memory", estimates.text(1), allowed)
    return _Found(samples, f"{failed}, {allowed}")


def expected_micro_batch(config: RunConfig, world_size: int, estimates: Estimates, free: float) -> int:
    """The number of `train.micro_batch`; of `auto`, the one that the estimate allows.

    Args:
        config: the configuration of the run.
        world_size: number of ranks.
        estimates: of the configuration.
        free: bytes for a rank, beside the cache of the data.
    """
    if not config.train.chooses_micro_batch:
        return config.train.micro_batch_samples
    candidates = possible_micro_batches(config, world_size)
    return largest_fitting(candidates, lambda samples: estimates.of(samples).tensors <= SHARE * free)[0]


def tries_steps(config: RunConfig, world: World) -> bool:
    """Whether steps are tried: on a device that refuses memory by an error, and where no rank waits for another.

    Args:
        config: the configuration of the run.
        world: the ranks.
    """
    return world.device.type == "cuda" and not (config.distributed.parallel == "fsdp" and world.size > 1)


def free_bytes(world: World) -> int:
    """Free memory of the device of a rank; on a CPU its part of that of the host.

    Args:
        world: the ranks.
    """
    if world.device.type != "cuda":
        return available_memory_bytes() // world.launch.local_world_size
    torch.cuda.empty_cache()
    unused = torch.cuda.memory_reserved(world.device) - torch.cuda.memory_allocated(world.device)
    return torch.cuda.mem_get_info(world.device)[0] + unused


def _beside_the_step(config: RunConfig, world: World, estimate: MemoryEstimate) -> int:
    """Bytes that a training takes and a step of a single rank without graphs does not: DDP's buckets, and with
    `train.cuda_graph` a validation beside the memory of the graphs, which also hold a copy of the batch."""
    buckets = estimate.gradients if world.size > 1 else 0
    return buckets + (estimate.validation + estimate.batch // 2 if config.train.cuda_graph else 0)


class Estimates:
    """Estimates of the memory of a training by its micro-batch.

    Args:
        config: the configuration of the run.
        scheme: the classes and the outputs of the data set.
        in_channels: channels of the images.
        precision: of the forward pass.
        world_size: number of ranks.
    """

    def __init__(
        self, config: RunConfig, scheme: LabelScheme, in_channels: int, precision: Precision, world_size: int
    ) -> None:
        self.config, self.scheme, self.in_channels = config, scheme, in_channels
        self.precision, self.world_size = precision, world_size
        self._known: dict[int, MemoryEstimate] = {}

    def of(self, samples: int) -> MemoryEstimate:
        """The estimate for a micro-batch. It takes some seconds when it is asked for the first time.

        Args:
            samples: of the micro-batch.
        """
        if samples not in self._known:
            config = with_micro_batch(self.config, samples)
            with silence():
                self._known[samples] = estimate_memory(
                    build_task(config, self.scheme),
                    config,
                    self.in_channels,
                    self.scheme.num_outputs,
                    precision=self.precision,
                    world_size=self.world_size,
                )
            progressed()
        return self._known[samples]

    def text(self, samples: int) -> str:
        """Say how much memory a micro-batch needs.

        Args:
            samples: of the micro-batch.
        """
        return f"{samples} needs about {gigabytes(self.of(samples).tensors)}"


def largest_fitting(candidates: Sequence[int], fits: Callable[[int], bool]) -> list[int]:
    """The candidates from the largest one that fits; the last one is taken without a question.

    Args:
        candidates: the largest first. If one fits, all smaller ones do.
        fits: tells whether a candidate fits; it is asked as seldom as possible.
    """
    low, high = 0, len(candidates) - 1
    if high and fits(candidates[0]):
        return list(candidates)
    low = min(1, high)
    while low < high:
        middle = (low + high) // 2
        if fits(candidates[middle]):
            high = middle
        else:
            low = middle + 1
    return list(candidates[low:])
