"""Settings of sampling, augmentation and evaluation, compared with the data set of a run."""

from __future__ import annotations

from collections.abc import Sequence

from fusionseg.config import RunConfig
from fusionseg.data.labels.mirroring import mirrored_classes, side_hint
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.loading.sampling.weights import SampledCase, named_weights
from fusionseg.data.loading.spatial.rules import SpatialRules, spatial_rules
from fusionseg.data.preprocessing.store import Store
from fusionseg.metrics.class_names import check_class_names
from fusionseg.runs.cases.datasets import RunDataset
from fusionseg.utils.errors import UserError


def sampled_cases(datasets: Sequence[RunDataset], stores: Sequence[Store]) -> list[SampledCase]:
    """The training cases of a run, as the weights of the sampling see them.

    Args:
        datasets: of the run.
        stores: the prepared cases of each data set.
    """
    return [
        SampledCase.of(store.cases[case.name], case.weight)
        for dataset, store in zip(datasets, stores, strict=True)
        for case in dataset.training
        if case.name in store.cases
    ]


def refuse_unfit_settings(config: RunConfig, scheme: LabelScheme) -> None:
    """Refuse settings of sampling, augmentation and evaluation that do not fit the data set.

    Nothing needs to be prepared for this.

    Args:
        config: the configuration of the run.
        scheme: the labels of the data set.

    Raises:
        UserError: with all problems.
    """
    problems: list[str] = []
    for check in (
        lambda: rules_of_run(config),
        lambda: mirrored_classes(config.augment.mirror_pairs, scheme),
        lambda: named_weights(config.data.sampling, scheme),
        lambda: check_class_names(config.evaluate, scheme.output_names) if config.task_info.needs_labels else None,
    ):
        try:
            check()
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)


def sides_warning(config: RunConfig, scheme: LabelScheme) -> str:
    """A warning about labels of the left and the right side that flips would mix up; empty if there is no reason.

    Args:
        config: the configuration of the run.
        scheme: the labels of the data set.
    """
    flips = config.augment.flips
    mixed = (
        config.task_info.needs_labels and flips.prob > 0 and "x" in flips.axes and config.data.orientation is not None
    )
    return side_hint(config.augment.mirror_pairs, scheme) if mixed else ""


def rules_of_run(config: RunConfig, spacings: Sequence[Sequence[float]] = ()) -> SpatialRules:
    """Decide which axes the spatial augmentations of a run may change.

    Args:
        config: the configuration of the run.
        spacings: voxel sizes of the training cases; empty before they are prepared.

    Raises:
        UserError: an augmentation cannot be applied to patches of this size, or to these voxel sizes.
    """
    stated = [] if config.data.spacing is None else [config.data.spacing]
    return spatial_rules(
        config.augment, config.data.patch, spacings or stated, getattr(config.model, "stack_axis", None)
    )
