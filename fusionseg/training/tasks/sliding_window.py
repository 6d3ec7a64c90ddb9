"""Sliding-window prediction of a whole volume by MONAI, with the padding of the training patches."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from fusionseg.config import ValidateConfig
from fusionseg.observability.ranges import progressed
from fusionseg.training.precision import Precision


def count_windows(shape: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """Count the windows that MONAI lays over a volume.

    Args:
        shape: size of the volume along each axis, in voxels.
        patch: size of a window along each axis, in voxels.
        overlap: overlap of neighbouring windows, as a share of the window.
    """
    counts = []
    for size, edge in zip(shape, patch, strict=True):
        stride = edge if edge >= size else max(1, int(edge * (1 - overlap)))
        counts.append(ceil(max(0, size - edge) / stride) + 1)
    return prod(counts)


def fill_batch(samples: Tensor, size: int) -> Tensor:
    """Lengthen a batch by copies of its last sample, so that a compiled network sees one shape.

    Args:
        samples: (N, ...), at least one and at most `size` samples.
        size: samples of the result.
    """
    missing = size - len(samples)
    return torch.cat([samples, samples[-1:].expand(missing, *samples.shape[1:])]) if missing else samples


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    image: Tensor,
    background: Sequence[float] | Tensor,
    patch: tuple[int, int, int],
    settings: ValidateConfig,
    precision: Precision,
    *,
    device: torch.device,
    stitch_device: torch.device | None = None,
    fills_batches: bool = False,
) -> Tensor:
    """Predict the logits (K, X, Y, Z), float32, of a whole image.

    Args:
        model: the network, in evaluation mode.
        image: (C, X, Y, Z), the prepared image.
        background: the intensity of each channel outside the volume, where it is smaller than the patch.
        patch: size of a window, in voxels.
        settings: the `validate` section: overlap, blending, windows in one forward pass.
        precision: the precision of the forward pass.
        device: the device of the network.
        stitch_device: the device that gathers the logits of the whole volume; None is `device`. The CPU limits the
            memory that a large volume takes on a GPU.
        fills_batches: give the network always `settings.window_batch` windows, see `fill_batch`. Other windows than
            those of the volume cost time, so this is for a compiled network.
    """
    shape = image.shape[1:]
    missing = [max(0, size - have) for size, have in zip(patch, shape, strict=True)]
    before = [gap // 2 for gap in missing]
    if any(missing):
        after = [gap - front for gap, front in zip(missing, before, strict=True)]
        pads = [value for front, back in zip(reversed(before), reversed(after), strict=True) for value in (front, back)]
        levels = torch.as_tensor(background, dtype=image.dtype).flatten().tolist()
        image = torch.cat(
            [F.pad(channel[None], pads, value=level) for channel, level in zip(image, levels, strict=True)]
        )

    def network(windows: Tensor) -> Tensor:
        progressed()
        count = len(windows)
        with precision.autocast():
            logits: Tensor = model(fill_batch(windows, settings.window_batch) if fills_batches else windows)
        return logits[:count].float()

    logits = sliding_window_inference(
        image[None].float(),
        roi_size=patch,
        sw_batch_size=settings.window_batch,
        predictor=network,
        overlap=settings.overlap,
        mode=settings.blend,
        sw_device=device,
        device=stitch_device or device,
    )
    assert isinstance(logits, Tensor)
    x, y, z = before
    return logits[0, :, x : x + shape[0], y : y + shape[1], z : z + shape[2]]
