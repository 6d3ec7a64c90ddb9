"""The message about memory that a training lacks: what was being done, and what each setting would save."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fusionseg.config import RunConfig
from fusionseg.config.training.loop import TrainConfig
from fusionseg.data.loading.device_cache import DeviceCache
from fusionseg.distributed.world import World
from fusionseg.observability.ranges import failed_phase, silence
from fusionseg.training.memory.estimate import estimate_memory
from fusionseg.training.tasks.choice import build_task
from fusionseg.training.trainer import Trainer
from fusionseg.utils.files import whole_file, write_text
from fusionseg.utils.machine import available_memory_bytes, process_memory_bytes
from fusionseg.utils.tables import gigabytes

_CPU_ALLOCATOR = "DefaultCPUAllocator"
"""torch raises a RuntimeError with this name where the host has no memory left."""
_GPU_TEXTS = ("CUDA error: out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
"""Texts of RuntimeErrors where CUDA or one of its libraries has found no memory on the GPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that a GPU or the host has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in (_CPU_ALLOCATOR, *_GPU_TEXTS))
    )


def device_of_error(error: BaseException, device: torch.device) -> torch.device:
    """The device whose memory ran out: the host also in a training on a GPU, if the host has refused the memory.

    Args:
        error: see `is_out_of_memory`.
        device: of the training.
    """
    is_of_host = isinstance(error, MemoryError) or _CPU_ALLOCATOR in str(error)
    return torch.device("cpu") if is_of_host else device


def out_of_memory_text(error: BaseException, config: RunConfig, world: World, trainer: Trainer | None) -> str:
    """Say what was being done, how much memory was taken, and which settings take less.

    Args:
        error: see `is_out_of_memory`.
        config: the configuration of the run.
        world: the ranks.
        trainer: the training; None if it was not built yet. Then no saving is estimated.
    """
    step, device = world.progress.step, device_of_error(error, world.device)
    phase = failed_phase(error) or "start"
    at = phase if step is None else f"{phase} in step {step + 1}"
    patch = " x ".join(map(str, config.data.patch))
    first = str(error).partition("\n")[0] or type(error).__name__
    micro_batch = (config if trainer is None else trainer.config).train.micro_batch
    remedies = [] if trainer is None else _savings(trainer, device)
    if config.train.chooses_micro_batch and device == world.device:
        remedies.insert(0, "the same command again: train.micro_batch: auto then takes a smaller number")
    remedies.append("in a validation: a lower validate.window_batch")
    if device.type == "cpu":
        remedies.append("on a host: fewer processes, or a higher limit (ulimit -v, control group, --mem of SLURM)")
    return (
        f"out of memory on {device}: {at}, {config.model.name} with train.micro_batch {micro_batch}"
        f" and data.patch {patch}; {_memory_text(device)} ({first}). Settings that take less memory:\n  "
        + "\n  ".join(remedies)
    )


def _savings(trainer: Trainer, device: torch.device) -> list[str]:
    """List settings with their estimated saving on a device; first those that keep the results."""
    config, world, cache = trainer.config, trainer.world, trainer.data.cache
    if device != world.device:
        return ["the memory of the host, not that of the GPU: cache.device=disk, or fewer data.workers"]

    def needed(one: RunConfig) -> int:
        with silence():
            channels, outputs = len(trainer.data.channels), trainer.data.scheme.num_outputs
            task = build_task(one, trainer.data.scheme)
            estimate = estimate_memory(task, one, channels, outputs, precision=trainer.precision, world_size=world.size)
            return estimate.tensors

    lines = []
    if isinstance(cache, DeviceCache) and cache.device.type == "cuda":
        lines.append(f"cache.device=host: {gigabytes(cache.nbytes)} less, slower; the same results")
    before = None
    for words, effect, changes in _choices(config, world):
        with suppress(Exception):  # a setting that does not fit is no remedy, and an estimate must not hide the error
            before = needed(config) if before is None else before
            saved = before - needed(_changed(config, changes))
            if saved > 0:
                lines.append(f"{words}: about {gigabytes(saved)} of {gigabytes(before)} less; {effect}")
    if config.train.micro_batch_samples > 1 and not config.train.chooses_micro_batch:
        with suppress(Exception):  # the results depend on it
            _changed(config, {"train": {"micro_batch": "auto"}})
            lines.append("train.micro_batch=auto: each start takes the largest that fits; the run goes on")
    return lines


def save_snapshot(path: Path, device: torch.device) -> None:
    """Keep the state of the allocator of a GPU, for https://docs.pytorch.org/memory_viz; a failure is no news.

    Args:
        path: the file.
        device: nothing is kept for a CPU.
    """
    if device.type == "cuda":
        with suppress(Exception), whole_file(path) as temporary:
            torch.cuda.memory._dump_snapshot(str(temporary))


def write_note(path: Path, text: str) -> None:
    """Keep the message in the run folder, for people and for the next choice of a micro-batch; a failure is no news.

    Args:
        path: the file.
        text: from `out_of_memory_text`.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f"{text}\n")


def _choices(config: RunConfig, world: World) -> Iterator[tuple[str, str, dict[str, dict[str, Any]]]]:
    """The words of each setting, its effect, and its values by section."""
    train: TrainConfig = config.train
    if config.model.can_checkpoint and not train.checkpoint_activations:
        yield (
            "train.checkpoint_activations=true",
            "slower steps; the same results, and the run goes on",
            {"train": {"checkpoint_activations": True}},
        )
    if world.size > 1 and config.distributed.parallel == "ddp":
        yield (
            "distributed.parallel=fsdp",
            "the same results but for rounding, and the run goes on",
            {"distributed": {"parallel": "fsdp"}},
        )
    if train.micro_batch_samples > 1:
        half = _half(train.micro_batch_samples, train.global_batch // world.size)
        begun = "the run goes on" if train.chooses_micro_batch else "a run that has begun needs --extend"
        yield (
            f"train.micro_batch={half}",
            f"the accumulation rises, the samples stay the same; {begun}",
            {"train": {"micro_batch": half}},
        )
    smaller = [_smaller(size) for size in config.data.patch]
    if smaller != list(config.data.patch):
        yield (
            f"data.patch=[{', '.join(map(str, smaller))}]",
            "another training: it needs another name",
            {"data": {"patch": smaller}},
        )


def _half(micro_batch: int, samples: int) -> int:
    """The largest divisor of a rank's samples of a step that is at most half of the micro-batch."""
    return next(size for size in range(micro_batch // 2, 0, -1) if samples % size == 0)


def _smaller(size: int) -> int:
    """The patch size three quarters as large, in multiples of 32; small sizes stay."""
    return max(32, size * 3 // 4 // 32 * 32) if size > 32 else size


def _changed(config: RunConfig, changes: dict[str, dict[str, Any]]) -> RunConfig:
    """The configuration with other values, validated."""
    plain = config.to_dict()
    for section, values in changes.items():
        plain[section] = {**plain.get(section, {}), **values}
    return RunConfig.model_validate(plain)


def _memory_text(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{gigabytes(process_memory_bytes('VmRSS'))} in this process, {gigabytes(available_memory_bytes())} free"
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    free, total = map(gigabytes, torch.cuda.mem_get_info(device))
    return f"{gigabytes(allocated)} allocated, {gigabytes(reserved)} reserved, {free} of {total} free"
