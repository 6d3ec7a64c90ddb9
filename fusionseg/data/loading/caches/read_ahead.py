"""Reading ahead: threads read the parts of the volumes that the next micro-batches need."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from fusionseg.data.loading.caches.disk_cache import Boxes, DiskCache, bounds_of
from fusionseg.data.loading.patch_boxes import patch_box
from fusionseg.data.loading.sampling_plan import SamplePlan, Samples
from fusionseg.data.loading.spatial.rules import SpatialRules

MicroBatchKey = tuple[int, range]
"""Step, and indices of the samples in its global batch."""


class ReadAhead:
    """Reads the boxes of coming micro-batches from the disk.

    The plan tells the samples of any step, so what is read is what will be asked for.

    Args:
        cache: the prepared cases.
        plan: of the samples.
        rules: the axes that spatial augmentations may change, as the plan has them.
        threads: number of threads.
    """

    def __init__(self, cache: DiskCache, plan: SamplePlan, rules: SpatialRules, threads: int) -> None:
        self.cache = cache
        self.plan = plan
        self.rules = rules
        self.depth = 2 * threads
        """Number of micro-batches that are read ahead."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
        self._coming: dict[MicroBatchKey, Future[Boxes]] = {}

    def expect(self, coming: Iterable[MicroBatchKey]) -> None:
        """Begin to read micro-batches that are not read yet.

        Args:
            coming: the next micro-batches in their order; the first `depth` of them are taken.
        """
        expected = list(islice(coming, self.depth))
        before, self._coming = self._coming, {}
        for key in expected:
            future = before.pop(key, None)
            self._coming[key] = self._pool.submit(self._read, *key) if future is None else future
        for future in before.values():  # of micro-batches that will not be asked for
            future.cancel()

    def bring(self, step: int, indices: range) -> None:
        """Put the boxes of a micro-batch at hand, for the calls of `DiskCache.box` that follow.

        Args:
            step: of the optimizer.
            indices: of the samples within the global batch.
        """
        future = self._coming.pop((step, indices), None)
        self.cache.at_hand = self._read(step, indices) if future is None else future.result()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _read(self, step: int, indices: range) -> Boxes:
        samples = self.plan.samples(step, indices)
        boxes = {}
        for i, case_index in enumerate(samples.case_index.tolist()):
            box = self._box(samples, i)
            boxes[(case_index, bounds_of(box))] = self.cache.read(case_index, box)
        return boxes

    def _box(self, samples: Samples, i: int) -> tuple[slice, slice, slice]:
        record = self.cache.records[int(samples.case_index[i])]
        warped = bool(samples.warped[i])
        return patch_box(samples, i, record, self.plan.patch, self.rules.through_plane, warped=warped).slices
