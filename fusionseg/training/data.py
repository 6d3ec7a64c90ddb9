"""The data of a training: prepared cases in the cache, the sample plan, and the patches."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.config import RunConfig
from fusionseg.data.formats.ignored_entries import unlabelled_cases
from fusionseg.data.labels.mirroring import LEFT_RIGHT, mirror_images, mirrored_classes
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.loading.augmentations import check_augmentations
from fusionseg.data.loading.caches.case_cache import CaseCache
from fusionseg.data.loading.caches.disk_cache import DiskCache
from fusionseg.data.loading.caches.read_ahead import ReadAhead
from fusionseg.data.loading.patch_augmenter import PatchAugmenter
from fusionseg.data.loading.sampling.patch_centres import unannotated_warning
from fusionseg.data.loading.sampling.weights import sampling_weights
from fusionseg.data.loading.sampling_plan import SamplePlan
from fusionseg.data.preprocessing.lost_foreground import lost_foreground_warning
from fusionseg.data.preprocessing.store import Store
from fusionseg.distributed.world import World
from fusionseg.observability.ranges import annotate
from fusionseg.runs.cases.opening import RunCases
from fusionseg.runs.cases.split import Split
from fusionseg.training.opened_data.cache import open_cache
from fusionseg.training.opened_data.draws import open_draws
from fusionseg.training.opened_data.preparation import prepare_and_split
from fusionseg.training.opened_data.settings import refuse_unfit_settings, rules_of_run, sampled_cases, sides_warning

log = logging.getLogger("fusionseg")


@dataclass
class TrainingData:
    """The data that batches and validation are made from."""

    channels: tuple[str, ...]
    """Names of the image channels."""
    scheme: LabelScheme
    """The classes of the (first) data set, and the outputs of the network."""
    split: Split
    validation_cases: list[int]
    """Indices of the validation cases in the cache."""
    cache: CaseCache
    """The training cases, then the validation cases that are not among them."""
    plan: SamplePlan
    augmenter: PatchAugmenter
    annotated: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the annotated outputs, by name of each case that does not annotate all of them."""
    targets: dict[str, str] = field(default_factory=dict)
    """The value of each case that the task learns, by its name (`data.target`)."""
    counted_classes: tuple[str, ...] = ()
    """Names of the classes, the background first, that drawn patches are counted by; empty without labels."""
    read_ahead: ReadAhead | None = None
    """Reads what coming micro-batches need; None if the cache holds all cases in memory."""

    @property
    def labels(self) -> dict[int, str]:
        """Names of the classes 0, 1, ..., the background included."""
        return self.scheme.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the foreground classes 1, 2, ..."""
        return self.scheme.names[1:]

    @property
    def content(self) -> str:
        """A hash of the names and files of all cases. Checkpoints of older versions have it instead of a split."""
        contents = "".join(
            name + record.content for name, record in zip(self.cache.names, self.cache.records, strict=True)
        )
        return hashlib.sha256(contents.encode()).hexdigest()[:16]

    def expect(self, coming: Iterable[tuple[int, range]]) -> None:
        """Begin to read what coming micro-batches need, if they are not in memory.

        Args:
            coming: step and indices of the next micro-batches of this rank, as `batch` will be asked for them.
        """
        if self.read_ahead is not None:
            self.read_ahead.expect(coming)

    def batch(self, step: int, indices: range) -> tuple[Tensor, Tensor]:
        """Cut and augment patches, on the training device.

        Args:
            step: the number of the step, from 0.
            indices: the indices k of the samples in the global batch of the step.

        Returns:
            Images (B, C, X, Y, Z), float32, and class indices (B, 1, X, Y, Z), int64; 0 where a case has no label,
            `IGNORE` for voxels without annotation.
        """
        self.cache.advance(step)
        if self.read_ahead is not None:
            self.read_ahead.bring(step, indices)
        return self.augmenter(self.plan.samples(step, indices))

    def annotated_outputs(self, step: int, indices: range) -> NDArray[np.bool_] | None:
        """Tell for each sample and output whether the case of the sample annotates it, (B, R); None if all do.

        A left-right flip exchanges the labels of `augment.mirror_pairs`, and so the annotated outputs.

        Args:
            step: as for `batch`.
            indices: as for `batch`.
        """
        if not self.annotated:
            return None
        samples = self.plan.samples(step, indices)
        rows = [self.annotated_by(int(case_index)) for case_index in samples.case_index]
        for i in np.flatnonzero(samples.flip[:, LEFT_RIGHT]):
            rows[i] = np.array([image is not None and rows[i][image] for image in self._mirror_images]) | rows[i].all()
        return np.stack(rows)

    @cached_property
    def _mirror_images(self) -> list[int | None]:
        return mirror_images(self.plan.augment.mirror_pairs, self.scheme)

    def annotated_by(self, case_index: int) -> NDArray[np.bool_]:
        """Tell for each output whether a case of the cache annotates it, (R,)."""
        return self.scheme.annotated_outputs(self.annotated.get(self.cache.names[case_index]))

    def describe_drawn(self, steps: range) -> str:
        """Describe the patches of some steps, by the class at their centre and by case, in one line."""
        return self.plan.count(steps).summary(self.counted_classes, self._drawn_cases)

    def drawn_fields(self, steps: range) -> dict[str, Any]:
        """The numbers of patches of some steps for a record; empty if all classes and cases are drawn evenly."""
        if not self.plan.weights.is_weighted:
            return {}
        counts = self.plan.count(steps)
        return {
            "drawn_classes": counts.by_class(self.counted_classes),
            "drawn_cases": counts.by_case(self._drawn_cases),
        }

    def target(self, case_index: int) -> str:
        """The value of a case of the cache that the task learns, as the column `data.target` has it."""
        return self.targets[self.cache.names[case_index]]

    def close(self) -> None:
        """End the threads that read."""
        self.cache.close()
        if self.read_ahead is not None:
            self.read_ahead.close()

    @property
    def _drawn_cases(self) -> list[str]:
        return self.cache.names[: len(self.plan.cases)]

    def case_indices(self, step: int, indices: range) -> list[int]:
        """Return for each sample the index, in the cache, of the case that it is cut from; see `batch`."""
        return [int(case) for case in self.plan.samples(step, indices).case_index]


def open_training_data(config: RunConfig, world: World, run: RunCases) -> TrainingData:
    """Prepare the cases that are not prepared yet, and load all cases into the cache. All ranks call it.

    Args:
        config: the configuration of the run.
        world: the ranks.
        run: the cases of the run.

    Raises:
        UserError: cases cannot be prepared, an image is in training and in validation, or the cache fits neither on
            the device nor in host memory.
    """
    scheme = run.datasets[0].dataset.scheme
    refuse_unfit_settings(config, scheme)  # before the preparation
    if world.is_rank_zero:
        if hint := sides_warning(config, scheme):
            log.warning("%s", hint)
        for part in run.datasets:
            unlabelled = unlabelled_cases(part.dataset.training) if config.task_info.needs_labels else []
            for note in (*part.dataset.notes, *unlabelled):
                log.warning("%s", note)
    opened: list[tuple[list[Store], Split]] = []
    with annotate("prepare"):
        world.rank_zero_first("prepare the data", lambda: opened.append(prepare_and_split(config, run)))
    # All ranks use the cases that rank 0 found: on a network disk, another rank may still see an old directory.
    stores, split = world.broadcast_object(opened[0] if opened else None)
    train, validation = (_prepared_cases(run, stores, part) for part in ("training", "validation"))
    case_index = {case: index for index, case in enumerate(dict.fromkeys((*train, *validation)))}
    cases = [(stores[position], name) for position, name in case_index]
    if world.is_rank_zero and config.task_info.needs_labels:
        records = [store.cases[name] for store, name in cases]
        if lost := lost_foreground_warning(records, stores[0].labels):
            log.warning("%s", lost)
    weights = sampling_weights(config.data.sampling, scheme, sampled_cases(run.datasets, stores))
    training = [store.cases[name] for store, name in cases[: len(train)]]
    draws = open_draws(config, world.size, training, weights)
    # A slow node or disk must not exceed the time limit of the next collective operation on the devices.
    with annotate("cache"), world.wait_for_all("load the cache"):
        cache = open_cache(config.cache, world, cases, draws)
    if world.is_rank_zero and (unannotated := unannotated_warning(cache.plan_cases[: len(train)])):
        log.warning("%s", unannotated)
    check_augmentations(config.augment, cache.channels, config.data.patch, world.device)
    rules = rules_of_run(config, [record.spacing for record in training])
    if world.is_rank_zero:
        for line in rules.describe(config.augment):
            log.info("%s", line)
    plan = SamplePlan(
        cache.plan_cases[: len(train)],
        config.augment,
        seed=config.seed,
        patch=config.data.patch,
        global_batch=config.train.global_batch,
        samples_per_volume=config.data.samples_per_volume,
        foreground=config.data.foreground,
        channels=cache.channels,
        rules=rules,
        weights=weights,
        draws=draws,
    )
    mirrored = mirrored_classes(config.augment.mirror_pairs, scheme)
    augmenter = PatchAugmenter(cache, config.augment, config.data.patch, world.device, rules, mirrored)
    validation_cases = [case_index[case] for case in validation]
    annotated = {case.name: case.annotated for case in run.datasets[0].cases if case.annotated is not None}
    targets = {case.name: case.target for case in run.datasets[0].cases if case.target is not None}
    counted = split.scheme.names if config.task_info.needs_labels else ()
    ahead = ReadAhead(cache, plan, rules, config.cache.read_threads) if isinstance(cache, DiskCache) else None
    return TrainingData(
        split.channels,
        split.scheme,
        split,
        validation_cases,
        cache,
        plan,
        augmenter,
        annotated,
        targets,
        counted,
        ahead,
    )


def _prepared_cases(run: RunCases, stores: Sequence[Store], part: str) -> list[tuple[int, str]]:
    """The prepared cases of a part of the split, each as the position of its data set and its name.

    Args:
        run: the cases of the run.
        stores: the prepared cases of each data set.
        part: training or validation.
    """
    return [
        (position, case.name)
        for position, (dataset, store) in enumerate(zip(run.datasets, stores, strict=True))
        for case in getattr(dataset, part)
        if case.name in store.cases
    ]
