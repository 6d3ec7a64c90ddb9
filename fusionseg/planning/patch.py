"""The patch and the micro-batch of a plan."""

from __future__ import annotations

from math import prod

from fusionseg.config.data.dataset import DataConfig
from fusionseg.config.section import Triple
from fusionseg.planning.choices import by
from fusionseg.planning.cost import MIN_BATCH, CostModel, global_batch, least_micro_batch
from fusionseg.planning.device import GB
from fusionseg.planning.fit import LARGEST_PATCH, Fitted, PatchSearch, largest_micro_batch
from fusionseg.planning.network import PlannedNetwork, network_for
from fusionseg.planning.recipe import largest_batch
from fusionseg.planning.volumes import PlannedVolumes
from fusionseg.utils.errors import UserError

GPU_WIDTH, CPU_WIDTH = 32, 16
"""Channels of the first level."""
LITTLE_CONTEXT = 0.25
"""nnU-Net's threshold: a patch with a smaller share of the median volume sees too little of it."""


def plan_patch(name: str, volumes: PlannedVolumes, cost: CostModel, cases: int, given: DataConfig) -> Fitted:
    """Choose the patch and the micro-batch.

    Args:
        name: of the network.
        volumes: the prepared volumes.
        cost: of networks on the device.
        cases: number of training cases.
        given: the section `data` of the request; a patch that it states is kept.

    Raises:
        UserError: not even the smallest patch fits into the memory of the GPU, or a given patch is wrong.
    """
    width = GPU_WIDTH if cost.device.is_gpu else CPU_WIDTH
    shape, spacing = volumes.median_shape, volumes.spacing

    def network(patch: Triple) -> PlannedNetwork:
        return network_for(name, spacing, patch, width)

    if "patch" in given.model_fields_set:
        return _fit_given(network(given.patch), cost, given)
    search = PatchSearch(shape, spacing, network, cost.load)
    if not cost.device.is_gpu:
        return search.largest(MIN_BATCH) or search.smallest(MIN_BATCH)
    # In volumes from which the search starts with a smaller patch, fewer samples would not make it larger.
    useful = min(LITTLE_CONTEXT * prod(shape), prod(search.first.patch))
    least = least_micro_batch(cost.device.ranks)
    fitted = search.largest(least, useful) or search.largest(1)
    if fitted is None:
        smallest = search.smallest(1).network
        needed = cost.memory(smallest, 1).total + cost.cache_bytes
        raise UserError(
            f"--memory: {name} with its smallest patch {list(smallest.patch)} needs {needed / GB:.1f} GB"
            f" (expected at most {cost.device.memory_gb:g} GB); choose another --network, or more memory"
        )
    if fitted.is_largest and fitted.micro_batch >= least:
        most = largest_batch(volumes, cases, fitted.network.patch) // cost.device.ranks
        fitted = largest_micro_batch(fitted, most, cost.load)
    return fitted


def plan_division(
    name: str, volumes: PlannedVolumes, cost: CostModel, cases: int, given: DataConfig
) -> tuple[CostModel, Fitted]:
    """Choose the patch and the micro-batch, and divide the network among the GPUs if it does not fit otherwise.

    Args:
        name: of the network.
        volumes: the prepared volumes.
        cost: of networks that each GPU has as a whole.
        cases: number of training cases.
        given: as for `plan_patch`.

    Returns:
        The cost of the network as it is trained, and the network.

    Raises:
        UserError: as for `plan_patch`.
    """
    fitted = None
    try:
        fitted = plan_patch(name, volumes, cost, cases, given)
    except UserError:
        if cost.device.ranks == 1:
            raise
    if fitted is None or (fitted.load > 1 and cost.device.ranks > 1):
        cost = cost.divided()
        fitted = plan_patch(name, volumes, cost, cases, given)
    return cost, fitted


def _fit_given(network: PlannedNetwork, cost: CostModel, given: DataConfig) -> Fitted:
    """The micro-batch for a patch that is given with the command."""
    patch = given.patch
    if network.patch != patch:
        raise UserError(
            f"data.patch: {network.values['name']} with these voxels needs multiples of {list(network.units)}, got"
            f" {list(patch)}; try {list(network.patch)}"
        )
    for micro_batch in (least_micro_batch(cost.device.ranks), 1):
        load = cost.load(network, micro_batch)
        if load <= 1 or not cost.device.is_gpu:
            break
    return Fitted(network, load, micro_batch, False)


def covers_median(fitted: Fitted, volumes: PlannedVolumes) -> bool:
    """True if the patch is at least as large as the median volume along each axis."""
    return all(size >= whole for size, whole in zip(fitted.network.patch, volumes.median_shape, strict=True))


def patch_reason(fitted: Fitted, volumes: PlannedVolumes, cost: CostModel, given: DataConfig) -> str:
    """The reason for a patch, for its comment; for the arguments see `plan_patch`."""
    shape, patch = volumes.median_shape, fitted.network.patch
    units = fitted.network.units
    found = f"The median volume has {by(shape)} voxels"
    share = prod(min(a, b) for a, b in zip(patch, shape, strict=True)) / prod(shape)
    divided = f"multiples of {units[0] if len(set(units)) == 1 else list(units)} for the network"
    limit = _limit_text(fitted, cost)
    if "patch" in given.model_fields_set:
        return f"Given with the command. {found}; the patch covers {share:.0%} of it. {limit}"
    if covers_median(fitted, volumes):
        return f"{found}; the patch covers it, in {divided}. {limit}"
    if fitted.is_largest:
        return (
            f"{found}; the patch covers {share:.0%} of it, in {divided}. nnU-Net's largest patch has about"
            f" {round(LARGEST_PATCH ** (1 / 3))}^3 voxels. {limit}"
        )
    return (
        f"{found}; the patch covers {share:.0%} of it: the largest within the limit, with the proportions of the"
        f" volume, in {divided}. {limit}"
    )


def _limit_text(fitted: Fitted, cost: CostModel) -> str:
    if not cost.device.is_gpu:
        seconds = cost.step_s(fitted.network, global_batch(fitted.micro_batch, cost.device.ranks))
        return f"A step takes roughly {seconds:.2g} s on this CPU."
    memory = cost.memory(fitted.network, fitted.micro_batch)
    parts = {
        "activations": memory.activations,
        "gradients and backward pass": memory.backward,
        "weights and optimizer": memory.weights + memory.optimizer,
        "driver": memory.driver,
    }
    listed = ", ".join(f"{name} {text} GB" for name, size in parts.items() if (text := f"{size / GB:.1f}") != "0.0")
    counted_as = "one of them" if fitted.micro_batch == 1 else f"{fitted.micro_batch} of them at a time"
    return f"Memory for {counted_as}: {memory.total / GB:.1f} GB ({listed}) of {cost.device.memory_gb:g} GB."
