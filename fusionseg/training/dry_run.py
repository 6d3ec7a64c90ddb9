"""`--dry-run`: the configuration of a run and its cost, without training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fusionseg.config import CacheConfig, RunConfig, dump_config
from fusionseg.config.data.splits import ALL
from fusionseg.data.formats.case_reader import read_grid
from fusionseg.data.formats.problems import CaseError
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.loading.augmentations import check_augmentations
from fusionseg.data.loading.caches.placement import GB, place_cache
from fusionseg.data.loading.device_cache import cache_bytes
from fusionseg.data.loading.sampling.weights import sampling_weights
from fusionseg.data.preprocessing.memory import resampled_voxels
from fusionseg.distributed.batch_arithmetic import batch_arithmetic, check_batch
from fusionseg.distributed.launch import Launch, read_launch
from fusionseg.distributed.world import choose_device
from fusionseg.runs.cases.datasets import RunDataset
from fusionseg.runs.cases.opening import open_cases, settle_split
from fusionseg.runs.checkpoints import find_weights
from fusionseg.runs.continuation.branch import find_branch
from fusionseg.runs.continuation.changes import PLAIN, Continuation
from fusionseg.runs.folder import RunFolder, run_folder_of
from fusionseg.training.memory.micro_batch_choice import (
    Estimates,
    expected_micro_batch,
    refuse_batch_norm,
    trial_config,
    with_micro_batch,
)
from fusionseg.training.numerics.deterministic_operators import refuse_unfit_operators
from fusionseg.training.observers.sinks import check_sinks
from fusionseg.training.opened_data.settings import refuse_unfit_settings, rules_of_run, sampled_cases, sides_warning
from fusionseg.training.optimizer import warmup_warning
from fusionseg.training.outside_check import check_outside_parts
from fusionseg.training.precision import choose_precision
from fusionseg.utils.errors import UserError
from fusionseg.utils.machine import available_memory_bytes

AUTO_BY_ESTIMATE = (
    "micro_batch: auto: this number follows from the estimate below and the free memory; a training on a GPU tries a"
    " step, and may find another"
)


def describe(config: RunConfig, environ: Mapping[str, str] = os.environ, continuation: Continuation = PLAIN) -> str:
    """Return the text of a dry run: configuration, batch arithmetic, size of the network and memory.

    Args:
        config: configuration of the run.
        environ: the environment, from which the launch is read.
        continuation: the word of a start with another configuration.

    Raises:
        UserError: the run could not be started.
    """
    launch = read_launch(environ)
    device = choose_device(config.device, torch.cuda.device_count(), launch)
    precision = choose_precision(config.train.precision, device)
    check_sinks(config.log)
    folder = RunFolder(run_folder_of(config))
    folder.check(config, continuation=continuation)
    origin = None
    if continuation.branch is not None and not folder.has_checkpoints():
        origin = find_branch(continuation.branch, config)
    run = open_cases(config, folder if origin is None else RunFolder(origin.run), planned=True)
    datasets = run.datasets
    if all(part.is_prepared for part in datasets):
        settle_split(config, run, [part.store for part in datasets])  # what a start refuses once the cases are prepared
    dataset = datasets[0].dataset
    check_batch(config, launch.world_size)
    trial = trial_config(config)
    check_outside_parts(
        trial,
        device,
        in_channels=len(dataset.channels),
        scheme=dataset.scheme,
        partial=dataset.is_partly_annotated,
    )
    refuse_unfit_operators(trial, device, in_channels=len(dataset.channels), scheme=dataset.scheme)
    refuse_batch_norm(config, in_channels=len(dataset.channels), scheme=dataset.scheme)
    needed, basis = expected_cache_bytes(config.cache, datasets)
    # The context of this process is there already: what is free on a GPU has to hold the tensors only.
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_bytes()
    ranks = launch.local_world_size if device.type == "cpu" else 1  # ranks that share the free memory
    estimates = Estimates(config, dataset.scheme, len(dataset.channels), precision, launch.world_size)
    samples = expected_micro_batch(config, launch.world_size, estimates, free / ranks - needed)
    memory = estimates.of(samples)
    batch = batch_arithmetic(with_micro_batch(config, samples), launch.world_size)
    fits = (
        ""
        if (memory.tensors + needed) * ranks < free
        else ": too much, see train.micro_batch, train.checkpoint_activations, data.patch"
    )
    refuse_unfit_settings(config, dataset.scheme)
    rules = rules_of_run(config, _known_spacings(datasets))
    sides = sides_warning(config, dataset.scheme)
    check_augmentations(config.augment, len(dataset.channels), config.data.patch, torch.device("cpu"))
    resumed = " (would be resumed)" if folder.has_checkpoints() else ""
    if origin is not None:
        resumed = f" (would begin at {origin.checkpoint})"
    lines = [
        dump_config(config),
        f"run folder   {folder.path}{resumed}",
        *(
            f"data         {part.dataset.name} ({part.dataset.layout}): {_split_text(config, part)}"
            for part in datasets
        ),
        f"             channels {', '.join(dataset.channels)}"
        + (_outputs_text(dataset.scheme) if config.task_info.needs_labels else ""),
        f"device       {device}, precision {precision.name} ({precision.reason})",
        f"batch        {batch}",
        *([f"             {AUTO_BY_ESTIMATE}"] if config.train.chooses_micro_batch else []),
        *([f"             {launch.warning}"] if launch.warning else []),
        *([f"             {cut}"] if (cut := warmup_warning(config)) else []),
        f"model        {config.model.name}: {memory.parameters:,} parameters",
        *([f"             implementation {memory.implementation}"] if memory.implementation else []),
        f"             starts from {_start_text(config)}",
        *(f"             {line}" for line in [*rules.describe(config.augment), *([sides] if sides else [])]),
        *_sampling_lines(config, datasets, dataset.scheme),
        f"cache        {needed / GB:.3f} GB ({basis})",
        *(f"             {line}" for line in _placement_lines(config.cache, needed, device, launch)),
        f"memory       about {memory.total / GB:.2f} GB on each rank, beside the cache, of {free / GB:.1f} GB free on"
        f" {device}{fits}",
        f"             weights {memory.weights / GB:.2f}, optimizer {memory.optimizer / GB:.2f},"
        f" batch {memory.batch / GB:.2f}, activations {memory.activations / GB:.2f},"
        f" gradients and backward pass {memory.backward / GB:.2f}"
        + (f", a validation beyond that {memory.validation / GB:.2f}" if memory.validation else "")
        + (f", driver {memory.driver / GB:.2f}" if memory.driver else ""),
        *_division_lines(config, launch),
    ]
    return "\n".join(lines)


def _division_lines(config: RunConfig, launch: Launch) -> list[str]:
    """Say how the memory is divided among the ranks, or that a single rank divides nothing."""
    if config.distributed.parallel != "fsdp":
        return []
    if launch.world_size == 1:
        return ["             fsdp divides nothing on one rank: start --dry-run with torchrun for that of several"]
    return [
        f"             weights, gradients and optimizer are divided among {launch.world_size} ranks (fsdp); a unit of"
        " the network is whole while it computes"
    ]


def _start_text(config: RunConfig) -> str:
    """The weights that the network starts from. They may be those of a run that has not been trained yet."""
    if config.start_weights is None:
        return "random weights (no init_from)" if config.init_from is None else "random weights (finetune.from_scratch)"
    try:
        return str(find_weights(Path(config.start_weights)))
    except UserError as error:
        return f"init_from, which a training would refuse now: {error}"


def _placement_lines(cache: CacheConfig, needed: int, device: torch.device, launch: Launch) -> list[str]:
    """The memories that a start would compare, and the chosen one, by what is free now on this machine."""
    replicated, ranks = cache.placement == "replicated", launch.local_world_size
    rotating = cache.window_fraction * (1 + cache.replace_fraction)
    held = {"replicated": 1.0, "sharded": 1 / launch.world_size, "rotating": min(1.0, rotating)}
    try:
        placement = place_cache(
            round(needed * held[cache.placement]),
            cache,
            device,
            accelerator_free=torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0,
            host_free=available_memory_bytes(),
            ranks_on_host=ranks,
            shared=replicated and ranks > 1,
            disk=replicated,
        )
    except UserError as error:
        return error.problems
    return list(placement.table) or [f"on {placement.memory}: {placement.reason}"]


def _known_spacings(datasets: Sequence[RunDataset]) -> list[tuple[float, float, float]]:
    """The voxel sizes of the training cases; empty before they are prepared."""
    if not all(part.is_prepared for part in datasets):
        return []
    return [part.store.cases[case.name].spacing for part in datasets for case in part.training]


def _sampling_lines(config: RunConfig, datasets: Sequence[RunDataset], scheme: LabelScheme) -> list[str]:
    """The expected shares of the patches by the class at their centre, once the cases are prepared."""
    if not (config.task_info.needs_labels and all(part.is_prepared for part in datasets)):
        return []
    cases = sampled_cases(datasets, [part.store for part in datasets])
    weights = sampling_weights(config.data.sampling, scheme, cases)
    shares = weights.expected_shares(cases, config.data.foreground)
    shown = [f"{scheme.names[index]}: {share:.1%}" for index, share in shares.items() if index]
    lines = [f"sampling     patches centred on {', '.join([*shown, f'any position: {shares[0]:.1%}'])}"]
    if weights.cases is not None:
        least, most = (value * len(cases) / sum(weights.cases) for value in (min(weights.cases), max(weights.cases)))
        lines.append(f"             each case is drawn {least:.2g} to {most:.2g} times in an epoch")
    return lines


def _outputs_text(scheme: LabelScheme) -> str:
    """Name the outputs of the network: "; classes liver, spleen", or "; regions whole, core (sigmoid)"."""
    kind = "regions" if scheme.is_regions else "classes"
    return f"; {kind} {', '.join(scheme.output_names)}" + (" (sigmoid)" if scheme.sigmoid else "")


def _split_text(config: RunConfig, part: RunDataset) -> str:
    """Count the cases of both sides, and say how they were split: "8 to train, 2 to validate on (fold 0 of ...)"."""
    validated = f"{len(part.validation)} to validate on" if config.data.fold != ALL else "none to validate on"
    how = "" if part.method.is_plain else part.method.describe(config.data.fold)
    how = "the same cases" if part.trains_on_validation else how
    return f"{len(part.training)} to train, {validated}" + (f" ({how})" if how else "")


def expected_cache_bytes(cache: CacheConfig, datasets: Sequence[RunDataset]) -> tuple[int, str]:
    """Compute the bytes of the cache, and the basis of the computation in words.

    The basis is the prepared cases, or the headers of the images where the cases are not prepared yet.

    Args:
        cache: the `cache` section.
        datasets: the data sets of the run.
    """
    parts = [_dataset_bytes(cache, part) for part in datasets]
    return sum(size for size, _ in parts), "; ".join(dict.fromkeys(basis for _, basis in parts))


def _dataset_bytes(cache: CacheConfig, part: RunDataset) -> tuple[int, str]:
    data, dataset = part.data, part.dataset
    if part.is_prepared:
        return cache_bytes([part.store.cases[case.name] for case in part.cases], cache), "of the prepared cases"
    value_bytes = 2 if cache.dtype == "float16" else 4
    total = 0.0
    for case in part.cases:
        try:
            voxels = resampled_voxels(read_grid(case.images, dataset.readers), data)
        except CaseError as error:
            raise UserError(f"{error} (`fusionseg check {data.root}` lists all such cases)") from None
        total += voxels * (len(dataset.channels) * value_bytes + 1)  # a label voxel has one byte
    cropped = ", at most: the foreground crop is not known yet" if data.crop_foreground else ""
    return round(total), f"estimated from the images' headers{cropped}; not prepared yet"
