"""The cases that the ranks of a run draw from, where not every rank draws from all of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from fusionseg.config import RunConfig
from fusionseg.data.loading.sampling.case_shares import CaseShares
from fusionseg.data.loading.sampling.case_window import CaseWindow
from fusionseg.data.loading.sampling.weights import SamplingWeights
from fusionseg.data.preprocessing.store import PreparedCase
from fusionseg.utils.errors import UserError


def open_draws(
    config: RunConfig, ranks: int, training: Sequence[PreparedCase], weights: SamplingWeights
) -> CaseShares | CaseWindow | None:
    """The draws of the cases for `cache.placement`; None if every rank draws from all cases.

    Args:
        config: the configuration of the run.
        ranks: number of ranks.
        training: the training cases.
        weights: of classes and cases.

    Raises:
        UserError: the placement does not fit the cases.
    """
    placement = config.cache.placement
    if placement == "replicated":
        return None
    if weights.cases is not None:
        raise UserError(
            f"cache.placement: {placement} draws every case equally often, but the cases have weights (data.weight,"
            " data.sampling.case_weights); remove the weights, or set cache.placement to replicated"
        )
    voxels = [prod(record.shape) for record in training]
    if placement == "rotating":
        return CaseWindow(
            config.seed,
            voxels,
            window=config.cache.window_fraction,
            replaced=config.cache.replace_fraction,
            global_batch=config.train.global_batch,
            samples_per_volume=config.data.samples_per_volume,
        )
    if len(voxels) < ranks:
        raise UserError(
            f"cache.placement: sharded needs a training case for each rank (expected at least {ranks}, got"
            f" {len(voxels)}); start fewer ranks, or set cache.placement to replicated"
        )
    return CaseShares(
        config.seed,
        voxels,
        ranks=ranks,
        micro_batch=config.train.micro_batch_samples,
        global_batch=config.train.global_batch,
        samples_per_volume=config.data.samples_per_volume,
        epochs=config.cache.share_epochs,
    )
