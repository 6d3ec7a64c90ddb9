"""From a plan to a batch: cuts, warps, intensities; image and label move as one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patches import (
    CPU,
    Arrays,
    forced,
    hold,
    noise_case,
    plan_and_augmenter,
    planned,
    ramps,
    sampler,
    smooth_case,
)
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from fusionseg.data.loading.counter_random import counter_normal
from fusionseg.data.loading.device_cache import DeviceCache
from fusionseg.data.loading.noise_lines import line_places, noise_of_lines, normal_table
from fusionseg.data.loading.patch_augmenter import PatchAugmenter
from fusionseg.data.loading.sampling_plan import SamplePlan
from fusionseg.data.loading.spatial.geometry import patch_to_volume


def expected_cut(case: Arrays, origin: Any, patch: tuple[int, int, int], flip: Any) -> Arrays:
    """The patch by padding the whole volume, slicing it, and flipping the slice."""
    image, label = case
    pad = [(max(patch), max(patch))] * 3
    far = np.stack([np.pad(part, pad, constant_values=part.min()) for part in image])
    far_label = np.pad(label, pad)
    window = tuple(slice(o + max(patch), o + max(patch) + size) for o, size in zip(origin, patch, strict=True))
    axes = [axis for axis in range(3) if flip[axis]]
    return np.flip(far[(slice(None), *window)], [axis + 1 for axis in axes]), np.flip(far_label[window], axes)


FLIPS = [(False, False, False), (True, False, False), (False, True, True), (True, True, True)]


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize(
    ("origin", "patch"),
    [
        ((0, 0, 0), (8, 8, 8)),
        ((3, 1, 2), (7, 9, 6)),
        ((-3, -1, 0), (18, 16, 8)),
        ((0, -5, -2), (4, 20, 12)),
    ],
)
def test_a_plain_cut_is_a_slice(tmp_path: Path, flip: Any, origin: Any, patch: tuple[int, int, int]) -> None:
    case = noise_case((13, 12, 10))
    image, label = sampler(hold(tmp_path, case), patch)(planned(origin=origin, flip=flip))
    wanted_image, wanted_label = expected_cut(case, origin, patch, flip)
    np.testing.assert_array_equal(image[0].numpy(), wanted_image)
    np.testing.assert_array_equal(label[0, 0].numpy(), wanted_label)


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize(("origin", "patch"), [((3, 1, 2), (7, 9, 6)), ((-3, -1, 0), (18, 16, 8))])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 1.2, 3)])
def test_a_warp_that_does_nothing_is_the_cut(
    tmp_path: Path, flip: Any, origin: Any, patch: tuple[int, int, int], spacing: tuple[float, ...]
) -> None:
    made = sampler(hold(tmp_path, noise_case((13, 12, 10)), spacing=spacing), patch)
    plan = planned(origin=origin, flip=flip)
    cut, warped = forced("_cut", made, plan), forced("_warp", made, plan)
    np.testing.assert_allclose(warped[0], cut[0], atol=1e-5)
    np.testing.assert_array_equal(warped[1], cut[1])


def test_a_flip_of_a_warped_patch_is_the_flipped_patch(tmp_path: Path) -> None:
    """Flips come after the warp, as with `_cut`: the same anatomy, mirrored."""
    made = sampler(hold(tmp_path, smooth_case((24, 22, 20))), (14, 12, 10))
    settings = {"origin": (4, 5, 4), "angles": (0.2, -0.3, 0.4), "zoom": 1.2}
    image, label = forced("_warp", made, planned(**settings))
    for flip in FLIPS[1:]:
        axes = [axis for axis in range(3) if flip[axis]]
        other_image, other_label = forced("_warp", made, planned(flip=flip, **settings))
        np.testing.assert_allclose(other_image, image.flip([axis + 1 for axis in axes]), atol=1e-4)
        assert (other_label == label.flip(axes)).float().mean() > 0.999


@pytest.mark.parametrize(("axis", "plane"), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
def test_a_quarter_turn_is_numpys(tmp_path: Path, axis: int, plane: tuple[int, int]) -> None:
    case = noise_case((11, 11, 11))
    angles = [0.0, 0.0, 0.0]
    angles[axis] = np.pi / 2
    image, label = sampler(hold(tmp_path, case), (11, 11, 11))(planned(angles=angles))
    np.testing.assert_allclose(image[0], np.stack([np.rot90(part, -1, plane) for part in case[0]]), atol=1e-4)
    np.testing.assert_array_equal(label[0, 0], np.rot90(case[1], -1, plane))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.0, 2.5)])
@pytest.mark.parametrize(("angles", "zoom"), [((0.3, -0.5, 0.8), 1.0), ((0, 0, 0.6), 0.8), ((-1.2, 0.4, 0), 1.3)])
@pytest.mark.parametrize(("origin", "patch"), [((10, 9, 8), (24, 22, 20)), ((-3, 0, -6), (50, 38, 48))])
def test_rotation_and_zoom_are_scipys_in_mm(
    tmp_path: Path, spacing: Any, angles: Any, zoom: float, origin: Any, patch: tuple[int, int, int]
) -> None:
    case = smooth_case((44, 40, 36))
    image, label = sampler(hold(tmp_path, case, spacing=spacing), patch)(
        planned(origin=origin, angles=angles, zoom=zoom)
    )
    # The middle angle turns z towards x here, x towards z there.
    turn = Rotation.from_euler("XYZ", [angles[0], -angles[1], angles[2]]).as_matrix()
    matrix = np.diag(1 / np.array(spacing)) @ turn @ np.diag(spacing) / zoom
    half = (np.array(patch) - 1) / 2
    offset = np.array(origin) + half - matrix @ half
    low = case[0][0].min()
    wanted = ndimage.affine_transform(
        case[0][0] - low, matrix, offset, output_shape=patch, order=1, mode="grid-constant"
    )
    np.testing.assert_allclose(image[0, 0], wanted + low, atol=2e-3)
    nearest = ndimage.affine_transform(case[1], matrix, offset, output_shape=patch, order=0, mode="grid-constant")
    assert (label[0, 0].numpy() == nearest).mean() > 0.995  # but for ties


def test_the_turn_is_a_rotation_in_mm() -> None:
    spacing = np.array([0.7, 1.0, 2.5])
    for flip in FLIPS:
        matrix = patch_to_volume(np.array([0.3, -0.5, 0.8]), 1.25, np.array(flip), spacing)
        in_mm = np.diag(spacing) @ matrix @ np.diag(1 / spacing) * 1.25
        np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(in_mm) == pytest.approx((-1) ** sum(flip))


@pytest.mark.parametrize(("zoom", "volume_ratio"), [(2.0, 8.0), (0.5, 1 / 8)])
def test_zoom_above_one_enlarges(tmp_path: Path, zoom: float, volume_ratio: float) -> None:
    shape, patch = (48, 48, 48), (32, 32, 32)
    grid = np.stack(np.meshgrid(*(np.arange(48),) * 3, indexing="ij"), axis=-1)
    ball = (np.linalg.norm(grid - 23.5, axis=-1) < 7).astype(np.uint8)
    made = sampler(hold(tmp_path, (ball[None].astype(np.float32), ball)), patch)
    plain = made(planned(origin=(8, 8, 8)))[1].sum()
    image, label = made(planned(origin=(8, 8, 8), zoom=zoom))
    assert shape == ball.shape and plain == ball.sum()
    assert label.sum() / plain == pytest.approx(volume_ratio, rel=0.1)
    assert image.sum() / plain == pytest.approx(volume_ratio, rel=0.1)


WARPS: dict[str, dict[str, Any]] = {
    "flipped": {"flip": (True, False, True)},
    "rotated": {"angles": (0.3, -0.2, 0.4)},
    "zoomed": {"zoom": 1.3},
    "shrunk": {"zoom": 0.8},
    "deformed": {"elastic": 1.0, "elastic_key": 2},
    "all": {
        "flip": (False, True, True),
        "angles": (0.3, 0.2, -0.4),
        "zoom": 1.2,
        "elastic": 1.0,
        "elastic_key": 4,
    },
}


@pytest.mark.parametrize("warp", sorted(WARPS))
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_image_and_label_stay_aligned(tmp_path: Path, warp: str, axis: int) -> None:
    """Image and label both hold the coordinate: interpolated and nearest differ by half a voxel at most."""
    coordinates, _ = ramps((48, 44, 40))
    case = coordinates[axis][None], coordinates[axis].astype(np.uint8)
    made = sampler(hold(tmp_path, case, spacing=(1, 1.5, 0.8)), (12, 10, 14), elastic={"magnitude": 1.0, "spacing": 6})
    image, label = made(planned(origin=(18, 17, 13), **WARPS[warp]))
    apart = image[0, 0] - label[0, 0]
    assert apart.abs().max() <= 0.5 + 1e-3
    assert abs(apart.mean()) < 0.1
    assert len(label.unique()) > 6


def test_elastic_displacements(tmp_path: Path) -> None:
    made = sampler(hold(tmp_path, ramps((64, 64, 64))), (24, 20, 28), elastic={"magnitude": 1.5, "spacing": 6})
    grid = torch.from_numpy(ramps((24, 20, 28))[0] + 20)
    fields_ = []
    for key in range(6):
        image, label = made(planned(origin=(20, 20, 20), elastic=1.5, elastic_key=key))
        assert label.all()
        fields_.append(image[0] - grid)
    moved = torch.stack(fields_)
    assert 2 < moved.abs().max() <= 4 * 1.5 + 1e-3
    assert moved.mean() == pytest.approx(0, abs=0.15)
    assert 0.6 < moved.std() < 1.5  # less than at the coarse points, for it is interpolated between them
    per_axis = moved.transpose(0, 1).flatten(1)
    assert (per_axis.std(dim=1) > 0.6).all()  # every axis moves, each on its own
    assert (torch.corrcoef(per_axis) - torch.eye(3)).abs().max() < 0.2
    assert max(float(moved.diff(dim=dim).abs().max()) for dim in (2, 3, 4)) < 1.5 * 6 / 6 * 1.5  # smooth
    again, _ = made(planned(origin=(20, 20, 20), elastic=1.5, elastic_key=2))
    assert torch.equal(again[0] - grid, moved[2])
    doubled, _ = made(planned(origin=(20, 20, 20), elastic=3.0, elastic_key=2))
    np.testing.assert_allclose(doubled[0] - grid, 2 * moved[2], atol=1e-3)


def test_intensities_follow_the_formula(tmp_path: Path) -> None:
    case = noise_case((8, 9, 10))
    made = sampler(hold(tmp_path, case), (8, 9, 10), shift_intensity={}, scale_intensity={})
    plan = planned(2, draws={"scale_intensity": {"factor": [1.1, 0.9]}, "shift_intensity": {"offset": [0.25, 0.0]}})
    image, label = made(plan)
    np.testing.assert_allclose(image[0], case[0] * 1.1 + 0.25, atol=1e-6)
    np.testing.assert_allclose(image[1], case[0] * 0.9, atol=1e-6)
    np.testing.assert_array_equal(label[0, 0], case[1])


def test_noise(tmp_path: Path) -> None:
    case = noise_case((20, 21, 22))
    made = sampler(hold(tmp_path, case), (20, 21, 22), noise={"prob": 1.0})
    plan = planned(4, draws={"noise": {"std": [0.1, 0.1, 0.0, 0.3], "key": [5, 6, 5, 5]}})
    noise = made(plan)[0] - torch.from_numpy(case[0])
    assert noise[0].mean() == pytest.approx(0, abs=0.003) and noise[0].std() == pytest.approx(0.1, rel=0.02)
    assert not noise[2].any()
    np.testing.assert_allclose(noise[3], 3 * noise[0], atol=1e-6)  # the key makes it, whichever sample
    assert abs(float(torch.corrcoef(noise[:2].flatten(1))[0, 1])) < 0.03
    assert abs(float(torch.corrcoef(noise[0].flatten(1))[0, 1])) < 0.03  # channels have their own
    assert torch.equal(made(plan)[0], made(plan)[0])


def check_normal(rows: Tensor, count: int) -> None:
    """Rows of standard normal numbers: their moments, neighbours at several distances, and each other."""
    assert rows.dtype == torch.float32 and rows.isfinite().all()
    error = 5 / count**0.5
    for row in rows.double():
        assert row.mean() == pytest.approx(0, abs=error) and row.std() == pytest.approx(1, abs=error)
        assert (row**4).mean() == pytest.approx(3, abs=10 * error) and (row**3).mean() == pytest.approx(
            0, abs=4 * error
        )
        for distance in (1, 2, 3, 64, 127):
            assert abs(float((row[distance:] * row[:-distance]).mean())) < error
            assert abs(float((row[distance:] ** 2 * row[:-distance] ** 2).mean()) - 1) < 4 * error
    assert (torch.corrcoef(rows) - torch.eye(len(rows))).abs().max() < error


def test_counter_normal_is_normal_and_a_function_of_the_key() -> None:
    rows = [counter_normal(key, 50001) for key in (0, 1, 2**32 - 1, 123456789)]
    assert all(row.shape == (50001,) for row in rows)
    check_normal(torch.from_numpy(np.stack(rows)), 50001)
    assert np.array_equal(counter_normal(1, 50001), rows[1])
    assert counter_normal(123456789, 4).tolist() == pytest.approx(GOLDEN_NORMAL, abs=1e-6)


def noise_patches(shape: tuple[int, ...], keys: tuple[int, ...]) -> Tensor:
    places = torch.from_numpy(np.stack([line_places(key, math.prod(shape)) for key in keys]))
    return noise_of_lines(torch.from_numpy(normal_table()), places, torch.Size((len(keys), *shape)))


def test_noise_of_lines_is_normal_and_independent() -> None:
    """Neighbours along each axis, planes, channels and samples; the largest values are those of so many numbers."""
    shape, keys = (2, 40, 36, 44), (0, 1, 2**32 - 1, 123456789)
    noise = noise_patches(shape, keys)
    assert noise.shape == (4, *shape)
    check_normal(noise.flatten(0, 1).flatten(1), math.prod(shape[1:]))
    assert torch.equal(noise_patches(shape, keys[2:3])[0], noise[2])
    assert torch.equal(noise_patches((2, 40, 36), keys)[:, 0].flatten(1), noise[:, 0].flatten(1)[:, : 40 * 36])
    assert 4 < noise.abs().max() < 6
    for axis in (2, 3, 4):
        first, second = noise.narrow(axis, 0, shape[axis - 1] - 1), noise.narrow(axis, 1, shape[axis - 1] - 1)
        assert abs(float((first * second).mean())) < 5 / first.numel() ** 0.5
        others = [other for other in (2, 3, 4) if other != axis]
        means = noise.mean(others) * (math.prod(shape[1:]) / shape[axis - 1]) ** 0.5
        assert means.std() == pytest.approx(1, abs=0.15) and means.abs().max() < 4.5  # no plane stands out: no stripes
        lines = noise.mean(axis) * shape[axis - 1] ** 0.5
        assert lines.std() == pytest.approx(1, abs=0.05)
    spectrum = torch.fft.fftn(noise[0, 0]).abs() ** 2 / noise[0, 0].numel()
    assert spectrum.mean() == pytest.approx(1, abs=0.05) and spectrum.max() < 2 * math.log(noise[0, 0].numel())
    assert noise[3].flatten()[:4].tolist() == pytest.approx(GOLDEN_NOISE, abs=1e-6)


def test_lines_of_noise_begin_anywhere() -> None:
    places = line_places(7, 1 << 22)
    assert len(places) == 1 << 16 and places.min() >= 0 and places.max() < 1 << 20
    counts = np.bincount(places >> 12, minlength=256)
    assert ((counts - 256) ** 2 / 256).sum() < 350  # chi-squared, 255 degrees of freedom
    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.02


GOLDEN_NOISE = [0.5427253246307373, -0.14453600347042084, 0.351346492767334, -1.1258772611618042]
GOLDEN_NORMAL = [-0.08423339575529099, -0.6022999882698059, 0.435172438621521, 1.207288146018982]
EVERYTHING: dict[str, Any] = {
    "flip": 0.5,
    "shift_intensity": {"prob": 0.7},
    "scale_intensity": {"prob": 0.7},
    "noise": {"prob": 0.7},
    "rotate": {"prob": 0.3},
    "scale": {"prob": 0.3},
    "elastic": {"prob": 0.3, "spacing": 5},
    "blur": {"prob": 0.4},
    "contrast": {"prob": 0.4},
    "low_resolution": {"prob": 0.4},
    "gamma_inverted": {"prob": 0.4},
    "gamma": {"prob": 0.4},
    "cutout": {"prob": 0.4},
}


def everything(cache: DeviceCache, patch: tuple[int, int, int]) -> tuple[SamplePlan, PatchAugmenter]:
    return plan_and_augmenter(cache, EVERYTHING, patch, seed=1)


def test_a_sample_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    """To the last bit, and for sizes that no vector unit divides: accumulation must not change a sample."""
    cache = hold(tmp_path, smooth_case((20, 18, 16), 2), noise_case((9, 21, 17)), noise_case((14, 8, 19)))
    plan, made = everything(cache, (9, 7, 11))
    warped = set()
    for step in range(4):
        image, label = made(plan.samples(step, range(8)))
        warped |= set(plan.samples(step, range(8)).warped.tolist())
        for part in ([0], [3, 1], range(4, 8)):
            one_image, one_label = made(plan.samples(step, list(part)))
            for i, k in enumerate(part):
                assert torch.equal(one_image[i], image[k]), (step, k)
                assert torch.equal(one_label[i], label[k])
    assert warped == {True, False}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_contract_of_a_batch(tmp_path: Path, channels: int, dtype: str) -> None:
    cache = hold(tmp_path, *(noise_case((12, 13, 14), channels, seed) for seed in (0, 1)), dtype=dtype)
    plan, made = everything(cache, (8, 10, 16))
    for step in range(3):
        image, label = made(plan.samples(step, [0, 1, 2]))
        assert image.shape == (3, channels, 8, 10, 16) and image.dtype == torch.float32 and image.device == CPU
        assert label.shape == (3, 1, 8, 10, 16) and label.dtype == torch.int64 and label.device == CPU
        assert image.isfinite().all() and label.min() >= 0 and label.max() <= 3
        assert not image.requires_grad


def test_a_half_precision_cache_gives_the_rounded_volume(tmp_path: Path) -> None:
    cases = [noise_case((12, 13, 14), 2), smooth_case((15, 12, 11), 2)]
    full, half = hold(tmp_path / "full", *cases), hold(tmp_path / "half", *cases, dtype="float16")
    patch = (8, 10, 9)
    cut = sampler(half, patch)(planned(origin=(2, 3, 4)))[0][0]
    np.testing.assert_array_equal(cut, cases[0][0][:, 2:10, 3:13, 4:13].astype(np.float16).astype(np.float32))
    for step in range(4):
        plan, made = everything(full, patch)
        image, label = made(plan.samples(step, range(8)))
        half_image, half_label = everything(half, patch)[1](plan.samples(step, range(8)))
        np.testing.assert_allclose(half_image, image, atol=5e-3)
        assert torch.equal(half_label, label)


def test_the_cache_is_not_written_to(tmp_path: Path) -> None:
    cache = hold(tmp_path, noise_case((8, 9, 7)))
    image_bits = cache.image.view(torch.uint8)  # gaps between the cases may hold NaN
    before = image_bits.clone(), cache.label.clone()
    plan, made = everything(cache, (8, 9, 7))
    for step in range(3):
        image, label = made(plan.samples(step, range(8)))
        image.fill_(9)
        label.fill_(9)
    assert torch.equal(image_bits, before[0]) and torch.equal(cache.label, before[1])
