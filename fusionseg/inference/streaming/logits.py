"""Logits of a volume in a stream of rows: each window is computed once, and rows are passed on when they are closed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor

from fusionseg.inference.streaming.window_layout import Box, Segment, WindowLayout

log = logging.getLogger("fusionseg")

ABSENT_LOGIT = -80.0
"""Logit of every output but the background in windows that are skipped: a probability below 1e-34."""

Network = Callable[[Tensor], Tensor]
"""Logits (N, K, X, Y, Z), float32, of windows (N, C, X, Y, Z)."""


@dataclass(frozen=True)
class Rows:
    """Logits of some rows of a volume."""

    start: int
    """The first row, in voxels of the volume along the axis of the stream."""
    logits: Tensor
    """(K, X, Y, Z), over the whole volume along the other axes."""


@dataclass(frozen=True)
class StreamSettings:
    """The settings of a stream of logits."""

    blend: str
    """Weights of overlapping windows, as `validate.blend`."""
    device: torch.device
    """The device of the network."""
    stitch_device: torch.device
    """The device that holds the open rows."""
    outputs: int
    """The number of outputs of the network."""
    sigmoid: bool
    """Whether each output is a decision of its own; otherwise the first one is the background."""
    skips_air: bool = False
    """Whether windows that are background in every voxel are not computed. Voxels in no other window are background."""


def stream_logits(
    network: Network,
    image: Tensor,
    background: Sequence[float],
    layout: WindowLayout,
    batch: int,
    settings: StreamSettings,
) -> Iterator[Rows]:
    """Predict a volume, in the order of a layout.

    The memory is that of `layout.open_rows` rows, whatever the size of the volume along the axis. The windows are those
    of MONAI's `sliding_window_inference`, with its weights.

    Args:
        network: computes a batch of windows.
        image: (C, X, Y, Z), the prepared image.
        background: the intensity of each channel outside the volume.
        layout: the windows over the volume.
        batch: windows in one forward pass.
        settings: the settings of the stream.

    Yields:
        All rows once, in the order of the layout.
    """
    image = layout.pad(image.float(), background)
    windows = _Windows(network, image, background, batch, settings)
    if layout.count == 1:  # its weights would cancel out
        ((boxes, _),) = layout.steps(batch)
        for _, logits in windows.computed(boxes):
            yield _cropped(Rows(0, logits.to(settings.stitch_device)), layout)
            return
    weights = compute_importance_map(layout.patch, mode=settings.blend, device=settings.stitch_device)
    rows = _OpenRows(layout, weights, settings)
    for boxes, closed in layout.steps(batch):
        rows.add_all(windows.computed(boxes))
        for segment in closed:
            yield _cropped(Rows(segment[0], rows.close(segment)), layout)


class _Windows:
    """Computes the windows of an image."""

    def __init__(
        self, network: Network, image: Tensor, background: Sequence[float], batch: int, settings: StreamSettings
    ) -> None:
        self._network = network
        self._image = image
        self._levels = torch.tensor(list(background), dtype=torch.float32).view(-1, 1, 1, 1)
        self._settings = settings
        self._batch = batch

    def computed(self, boxes: Sequence[Box]) -> Iterator[tuple[Box, Tensor]]:
        """The logits (K, X, Y, Z) of windows, without those that are skipped."""
        if self._settings.skips_air:
            boxes = [box for box in boxes if not self._is_air(box)]
        done = 0
        while done < len(boxes):
            some = boxes[done : done + self._batch]
            batch = torch.stack([self._image[(slice(None), *box)] for box in some]).to(self._settings.device)
            try:
                logits = self._network(batch)
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                self._batch = len(some) // 2
                log.info("windows of %d at a time do not fit into the memory; %d are computed", len(some), self._batch)
                continue
            yield from zip(some, logits, strict=True)
            del batch, logits  # before the next ones take memory
            done += len(some)

    def _is_air(self, box: Box) -> bool:
        return bool((self._image[(slice(None), *box)] == self._levels).all())


class _OpenRows:
    """Sums of weighted logits, for the rows that windows still cover."""

    def __init__(self, layout: WindowLayout, weights: Tensor, settings: StreamSettings) -> None:
        self._layout = layout
        self._weights = weights
        self._settings = settings
        self._open: dict[Segment, tuple[Tensor, Tensor]] = {}
        """For each open segment the sum of the logits (K, X, Y, Z) and of the weights (X, Y, Z)."""

    def add_all(self, windows: Iterator[tuple[Box, Tensor]]) -> None:
        """Add the logits (K, X, Y, Z) of windows. They are weighted in place."""
        for box, logits in windows:
            self._add(box, logits)
            del logits  # it is a view of the whole batch, which would stay in memory during the next forward pass

    def _add(self, box: Box, logits: Tensor) -> None:
        axis = self._layout.axis
        logits = logits.to(self._settings.stitch_device).mul_(self._weights)
        for segment in self._layout.segments:
            low, high = (edge - box[axis].start for edge in segment)
            if low < 0 or high > self._layout.patch[axis]:
                continue
            total, weight = self._segment(segment)
            place = [*box]
            place[axis] = slice(None)
            total[(slice(None), *place)] += logits.narrow(axis + 1, low, high - low)
            weight[tuple(place)] += self._weights.narrow(axis, low, high - low)

    def close(self, segment: Segment) -> Tensor:
        """Give the mean logits (K, X, Y, Z) of a segment away."""
        total, weight = self._segment(segment)
        del self._open[segment]
        if self._settings.skips_air:
            skipped = weight == 0
            total[:, skipped] = ABSENT_LOGIT
            if not self._settings.sigmoid:
                total[0, skipped] = 0
            weight[skipped] = 1
        return total.div_(weight)

    def _segment(self, segment: Segment) -> tuple[Tensor, Tensor]:
        if segment not in self._open:
            shape = [*self._layout.padded]
            shape[self._layout.axis] = segment[1] - segment[0]
            device = self._settings.stitch_device
            zeros = torch.zeros((self._settings.outputs, *shape), device=device), torch.zeros(shape, device=device)
            self._open[segment] = zeros
        return self._open[segment]


def _cropped(rows: Rows, layout: WindowLayout) -> Rows:
    """Remove the padding of a volume that is smaller than a window."""
    if layout.padded == layout.shape:
        return rows
    logits, start = rows.logits, rows.start
    for axis, (size, front) in enumerate(zip(layout.shape, layout.before, strict=True)):
        if axis != layout.axis:
            logits = logits.narrow(axis + 1, front, size)
            continue
        first = max(rows.start, front)
        last = min(rows.start + rows.logits.shape[axis + 1], front + size)
        logits = logits.narrow(axis + 1, first - rows.start, last - first)
        start = first - front
    return Rows(start, logits)
