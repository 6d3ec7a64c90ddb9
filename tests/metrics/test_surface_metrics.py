"""HD95, average surface distance and surface Dice against MONAI, surface-distance and SciPy, on odd masks too."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import isnan

import numpy as np
import pytest
import torch
from mask_pairs import SPACINGS, Mask, blobs, mask_pairs
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy.ndimage import binary_erosion, distance_transform_edt
from surface_distance import metrics as deepmind
from torch import Tensor

from fusionseg.metrics.segmentation import hd95_per_class
from fusionseg.metrics.surface import SurfaceComparison

PAIRS = list(mask_pairs())
TOLERANCES = (0.5, 1.0, 2.1)


def one_hot(mask: Mask) -> Tensor:
    return torch.from_numpy(np.stack([~mask, mask])[None]).float()


def directed(predicted: Mask, true: Mask, spacing: Sequence[float]) -> list[np.ndarray]:
    """Distances between the surface voxels of two masks, by SciPy's erosion and distance transform."""
    surfaces = [mask & ~binary_erosion(mask) for mask in (predicted, true)]
    return [distance_transform_edt(~other, sampling=spacing)[own] for own, other in (surfaces, surfaces[::-1])]


def surface_dice(predicted: Mask, true: Mask, spacing: Sequence[float], tolerance: float) -> float:
    """The surface Dice of DeepMind's package."""
    with warnings.catch_warnings():  # it uses old names of SciPy
        warnings.simplefilter("ignore", DeprecationWarning)
        found = deepmind.compute_surface_distances(true, predicted, spacing)
    return float(deepmind.compute_surface_dice_at_tolerance(found, tolerance))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("name", "predicted", "true"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_surfaces_are_those_of_the_three_implementations(
    name: str, predicted: Mask, true: Mask, spacing: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)  # surface-distance was written for NumPy 1
    ours = SurfaceComparison(predicted, true, spacing)
    for tolerance in TOLERANCES:
        if predicted.any() or true.any():
            expected = surface_dice(predicted, true, spacing, tolerance)
            assert ours.nsd(tolerance) == pytest.approx(expected, abs=1e-6), tolerance
        else:
            assert isnan(ours.nsd(tolerance))
    if not (predicted.any() and true.any()):
        assert isnan(ours.hd95_mm) and isnan(ours.assd_mm)
        return
    scipys = directed(predicted, true, spacing)
    assert ours.hd95_mm == pytest.approx(max(np.percentile(one, 95) for one in scipys), rel=1e-6, abs=1e-6)
    assert ours.assd_mm == pytest.approx(np.concatenate(scipys).mean(), abs=1e-9)
    pair = one_hot(predicted), one_hot(true)
    with warnings.catch_warnings():  # MONAI warns of a deprecated argument that MONAI passes itself
        warnings.simplefilter("ignore", FutureWarning)
        monais = compute_hausdorff_distance(*pair, percentile=95, spacing=spacing)
        average = compute_average_surface_distance(*pair, symmetric=True, spacing=spacing)
    assert ours.hd95_mm == pytest.approx(float(monais[0, 0]), rel=1e-6, abs=1e-6)
    assert ours.assd_mm == pytest.approx(float(average[0, 0]), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_shift_by_whole_voxels_is_its_length(spacing: tuple[float, float, float]) -> None:
    for axis in range(3):
        plate = np.zeros((12, 12, 12), bool)
        plate[(slice(None),) * axis + (4,)] = True
        compared = SurfaceComparison(np.roll(plate, 3, axis=axis), plate, spacing)
        assert compared.hd95_mm == pytest.approx(3 * spacing[axis], rel=1e-6)
        assert compared.assd_mm == 3 * spacing[axis]


def test_the_place_in_the_volume_changes_nothing() -> None:
    """Distances at the tolerance count wherever the masks lie, and the rest of the volume does not matter."""
    spacing = (0.7, 0.9, 1.3)
    small = np.zeros((40, 40, 40), bool)
    small[2:6, 3:6, 4:9] = True
    results = set()
    for start in range(0, 28, 3):
        true = np.roll(small, (start, start, start), axis=(0, 1, 2))
        compared = SurfaceComparison(np.roll(true, 3, axis=0), true, spacing)
        results.add((compared.hd95_mm, compared.assd_mm, compared.nsd(3 * 0.7), compared.nsd(2.0)))
    assert len(results) == 1 and results.pop()[2] == 1


def test_the_surface_dice_rises_with_the_tolerance_to_one() -> None:
    compared = SurfaceComparison(blobs(1), blobs(2), (0.7, 0.7, 3.0))
    values = [compared.nsd(tolerance) for tolerance in (0.0, 0.5, 1, 2, 5, 50)]
    assert values == sorted(values) and 0 < values[0] < values[3] < values[-1] == 1


def test_each_class_of_an_array_has_its_own_distances() -> None:
    label = torch.from_numpy(blobs(1).astype(np.uint8) + 2 * (blobs(7) & ~blobs(1)))
    prediction = torch.from_numpy(blobs(8).astype(np.uint8) + 2 * (blobs(9) & ~blobs(8)))
    found = hd95_per_class(prediction, label, 4, (1, 2, 3))
    for value in (1, 2):
        alone = SurfaceComparison((prediction == value).numpy(), (label == value).numpy(), (1, 2, 3))
        assert found[value - 1] == alone.hd95_mm > 0
    assert isnan(found[2])
