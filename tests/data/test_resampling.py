"""Reorientation and resampling give the numbers of MONAI's transforms, bit for bit, at any position in space."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from numpy.typing import NDArray

from fusionseg.data.preprocessing.resampling import find_reorientation, plan_resampling, turned_channels

SPACINGS = (0.5, 0.8, 0.9765625, 1.0, 1.5, 2.0, 3.27, 4.0)


def placed(rng: np.random.Generator, kind: str) -> NDArray[np.float64]:
    """An affine of random voxel sizes and position, with permuted and flipped axes."""
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    if kind == "oblique":
        axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = axes * rng.choice(SPACINGS, 3)
    affine[:3, 3] = rng.normal(size=3) * 100
    if kind == "sheared":
        affine[:3, :3] += rng.normal(size=(3, 3)) * 1e-3
    if kind == "rounded":  # as a NIfTI header stores it
        affine = affine.astype(np.float32).astype(np.float64)
    return affine


def by_monai(
    image: NDArray[np.float32], label: NDArray[np.uint8], affine: NDArray[np.float64], axes: str | None, spacing: Any
) -> tuple[Any, Any, Any]:
    tensors = [
        MetaTensor(torch.from_numpy(values), affine=torch.from_numpy(affine))
        for values in (image, label[None].astype(np.float32))
    ]
    if axes is not None:
        tensors = [Orientation(axcodes=axes, labels=None)(tensor) for tensor in tensors]
    resample = Spacing(pixdim=spacing, padding_mode="border")
    made, mask = (resample(tensor, mode=mode) for tensor, mode in zip(tensors, ("bilinear", "nearest"), strict=True))
    return made.numpy(), mask[0].numpy(), np.asarray(made.affine)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other CPUs round some operations of torch together")
@pytest.mark.parametrize("kind", ["aligned", "rounded", "sheared", "oblique"])
def test_equal_to_monai(kind: str) -> None:
    rng = np.random.default_rng(sum(kind.encode()))
    resampled = aligned = 0
    for number in range(24):
        affine = placed(rng, kind)
        x, y, z = (int(size) for size in rng.integers(1 if number % 7 == 0 else 6, 26, 3))
        shape = (x, y, z)
        image = rng.normal(size=(1 + number % 2, *shape)).astype(np.float32)
        if number % 3 == 0:  # Hounsfield units, at whole ratios of the voxel sizes: many positions are ties
            image = np.rint(image * 500)
        label = rng.integers(0, 5, shape).astype(np.uint8)
        axes = (None, "RAS", "LPI")[number % 3]
        spacing = [float(size) for size in rng.choice((0.8, 1.0, 1.5, 2.0, 3.0), 3)]
        wanted = by_monai(image, label, affine, axes, spacing)
        if axes is not None:
            turn, affine = find_reorientation(affine, shape, axes)
            image, label = turned_channels(image, turn), turn(label)
        plan = plan_resampling(affine, (label.shape[0], label.shape[1], label.shape[2]), spacing)
        if plan is not None:
            image, label, affine = plan.image(image), plan.label(label), plan.affine
            resampled, aligned = resampled + 1, aligned + plan.is_aligned
        np.testing.assert_array_equal(affine, wanted[2])
        np.testing.assert_array_equal(image, wanted[0])
        np.testing.assert_array_equal(label, wanted[1])
    assert resampled > 18
    assert aligned == (resampled if kind in ("aligned", "rounded") else 0)
