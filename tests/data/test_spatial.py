"""Spatial augmentations against SciPy and MONAI: shear, zoom by axis, quarter turns, and the plane of slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Affine
from patches import CPU, forced, hold, noise_case, planned, sampler, smooth_case
from scipy import ndimage

from fusionseg.config import AugmentConfig
from fusionseg.data.loading.patch_augmenter import PatchAugmenter
from fusionseg.data.loading.sampling.patch_centres import PlanCase
from fusionseg.data.loading.sampling_plan import SamplePlan, Samples
from fusionseg.data.loading.spatial.geometry import patch_to_volume, shear_matrix
from fusionseg.data.loading.spatial.rules import SpatialRules, spatial_rules
from fusionseg.utils.errors import UserError

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 1.0, 2.5)]
SHEAR = (0.2, -0.1, 0.15, 0.05, -0.12, 0.1)
ALWAYS: dict[str, Any] = {
    "flip": {"prob": 0.5, "axes": ["x", "z"]},
    "rotate": {"prob": 1, "degrees": [10, 20, 30]},
    "scale": {"prob": 1, "factor": [0.7, 1.4], "per_axis": True},
    "shear": {"prob": 1, "degrees": 10},
    "rotate90": {"prob": 0.6},
    "elastic": {"prob": 0.5, "spacing": 4},
}


def plan(
    shape: tuple[int, int, int], patch: tuple[int, int, int], rules: SpatialRules, **augment: Any
) -> tuple[SamplePlan, AugmentConfig]:
    section = AugmentConfig.model_validate({**ALWAYS, **augment})
    case = PlanCase("a", shape, np.zeros(0, np.int64), (0,))
    settings: dict[str, Any] = {"seed": 3, "global_batch": 4, "samples_per_volume": 1, "foreground": 0.5, "channels": 1}
    return SamplePlan([case], section, patch=patch, rules=rules, **settings), section


def changes(samples: Samples) -> dict[str, Any]:
    return {name: getattr(samples, name) for name in ("flip", "quarter_turns", "angles", "zoom", "shear")}


def scipys(case: Any, patch: tuple[int, int, int], origin: Any, matrix: Any) -> tuple[Any, Any]:
    """The patch of the first channel and of the label by `scipy.ndimage.affine_transform`."""
    half = (np.array(patch) - 1) / 2
    offset = np.array(origin) + half - matrix @ half
    low = case[0][0].min()
    options = {"output_shape": patch, "mode": "grid-constant"}
    image = ndimage.affine_transform(case[0][0] - low, matrix, offset, order=1, **options) + low
    return image, ndimage.affine_transform(case[1], matrix, offset, order=0, **options)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    "change",
    [
        {"shear": SHEAR},
        {"zoom": (0.8, 1.2, 1.35)},
        {"shear": SHEAR, "zoom": (0.8, 1.2, 1.35), "angles": (0.2, -0.3, 0.1), "flip": (True, False, True)},
    ],
    ids=["shear", "zoom", "all"],
)
@pytest.mark.parametrize(("origin", "patch"), [((10, 9, 8), (24, 22, 20)), ((-3, 0, -6), (50, 38, 48))])
def test_shear_and_anisotropic_zoom_are_scipys_in_mm(
    tmp_path: Path, spacing: Any, change: Any, origin: Any, patch: tuple[int, int, int]
) -> None:
    case = smooth_case((44, 40, 36))
    image, label = sampler(hold(tmp_path, case, spacing=spacing), patch)(planned(origin=origin, **change))
    shear = shear_matrix(np.array(change.get("shear", (0,) * 6)))
    assert np.linalg.det(shear) == pytest.approx(1)
    turn = patch_to_volume(np.array(change.get("angles", (0, 0, 0))), 1.0, np.zeros(3, bool), np.ones(3))
    in_mm = turn @ shear @ np.diag(1 / np.array(change.get("zoom", (1, 1, 1))))
    flips = np.diag(np.where(change.get("flip", (False,) * 3), -1, 1))
    wanted, nearest = scipys(case, patch, origin, np.diag(1 / np.array(spacing)) @ in_mm @ np.diag(spacing) @ flips)
    np.testing.assert_allclose(image[0, 0], wanted, atol=2e-3)
    assert (label[0, 0].numpy() == nearest).mean() > 0.995  # but for ties


def test_rotation_shear_and_zoom_are_composed_as_by_monai(tmp_path: Path) -> None:
    """One patch of the whole volume: MONAI's grid has the same centre then."""
    case, side = smooth_case((21, 21, 21)), (21, 21, 21)
    zoom, angle = np.array((0.8, 1.2, 1.1)), 0.3
    image, _ = sampler(hold(tmp_path, case), side)(planned(shear=SHEAR, zoom=zoom, angles=(0, 0, angle)))
    monais = Affine(
        rotate_params=(0, 0, angle),
        shear_params=SHEAR,
        scale_params=(1 / zoom).tolist(),
        image_only=True,
        padding_mode="zeros",
    )(torch.from_numpy(case[0] - case[0].min()))
    np.testing.assert_allclose(image[0], monais + case[0].min(), atol=2e-3)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize(("axis", "plane"), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
@pytest.mark.parametrize("origin", [(2, 3, 1), (-3, 2, -1)])
def test_a_quarter_turn_is_exactly_numpys(
    tmp_path: Path, axis: int, plane: tuple[int, int], turns: int, origin: Any
) -> None:
    """Also of a flipped patch, which is flipped along the axes of the volume first; and the warp agrees."""
    sides = [9, 9, 9]
    sides[axis] = 7
    made = sampler(hold(tmp_path, noise_case((12, 13, 11))), (sides[0], sides[1], sides[2]))
    quarter_turns = [0, 0, 0]
    quarter_turns[axis] = turns
    for flip in ((False, False, False), (True, False, True)):
        image, label = made(planned(origin=origin, flip=flip))
        settings = {"origin": origin, "flip": flip, "quarter_turns": quarter_turns}
        turned_image, turned_label = made(planned(**settings))
        np.testing.assert_array_equal(turned_label[0, 0], np.rot90(label[0, 0], -turns, plane))
        for channel, turned in zip(image[0], turned_image[0], strict=True):
            np.testing.assert_array_equal(turned, np.rot90(channel, -turns, plane))
        warped_image, warped_label = forced("_warp", made, planned(**settings))
        np.testing.assert_allclose(warped_image, turned_image[0], atol=1e-5)
        np.testing.assert_array_equal(warped_label, turned_label[0, 0])


@pytest.mark.parametrize("through_plane", [0, 1, 2])
@pytest.mark.parametrize(("origin", "patch"), [((3, 4, 2), (16, 14, 12)), ((-3, -2, -4), (40, 36, 38))])
def test_slices_are_changed_in_their_plane_alone(
    tmp_path: Path, through_plane: int, origin: Any, patch: tuple[int, int, int]
) -> None:
    """The 2D interpolation is SciPy's in 3D, and the interpolation without a through-plane axis gives the same."""
    spacing = (0.7, 1.0, 2.5)
    case = smooth_case((24, 22, 20), 2)
    cache = hold(tmp_path, case, spacing=spacing)
    moved = np.arange(3) != through_plane
    change: dict[str, Any] = {
        "angles": np.where(moved, 0, 0.4),
        "zoom": np.where(moved, (0.8, 1.2, 1.3), 1),
        "shear": [0.2 if through_plane not in pair else 0 for pair in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))],
        "flip": (True, False, True),
    }
    samples = planned(origin=origin, **change)
    image, label = sampler(cache, patch, SpatialRules(through_plane))(samples)
    matrix = patch_to_volume(
        samples.angles[0], samples.zoom[0], samples.flip[0], np.array(spacing), shear=samples.shear[0]
    )
    wanted, nearest = scipys(case, patch, origin, matrix)
    np.testing.assert_allclose(image[0, 0], wanted, atol=2e-3)
    assert (label[0, 0].numpy() == nearest).mean() > 0.995
    in_3d, label_in_3d = sampler(cache, patch)(samples)
    np.testing.assert_allclose(image, in_3d, atol=2e-3)
    assert (label == label_in_3d).float().mean() > 0.999


def test_a_deformation_in_the_plane_is_the_same_in_all_slices(tmp_path: Path) -> None:
    columns = np.broadcast_to(np.arange(20.0, dtype=np.float32)[:, None], (20, 18))
    volume = np.repeat(columns[..., None], 10, axis=2)
    cache = hold(tmp_path, (np.stack([volume, volume]), (volume > 9).astype(np.uint8)))
    made = sampler(cache, (12, 10, 8), SpatialRules(2), elastic={"magnitude": 1.0, "spacing": 4})
    image, label = made(planned(origin=(4, 4, 1), elastic=1.0, elastic_key=7))
    moved = image[0, 0] - torch.from_numpy(volume[4:16, 4:14, 1:9])
    assert moved.abs().max() > 0.5
    assert (moved - moved[..., :1]).abs().max() < 1e-5 and (label[0, 0] == label[0, 0, ..., :1]).all()
    assert (image[0, 0].round() > 9).float().sub(label[0, 0]).abs().mean() < 0.06  # image and label move as one


def test_a_thick_axis_has_its_own_values_alone(tmp_path: Path) -> None:
    """No slice sees another one, whatever the plan draws: each holds its own number."""
    volume = np.broadcast_to(np.arange(9, dtype=np.float32), (24, 24, 9))
    cache = hold(tmp_path, (volume[None] + 1, np.ones(volume.shape, np.uint8)), spacing=(1, 1, 5))
    rules = spatial_rules(AugmentConfig.model_validate({**ALWAYS, "axes": "auto"}), (12, 12, 5), [(1, 1, 5)])
    assert (rules.through_plane, rules.turn_axes) == (2, (2,))
    drawing, section = plan((24, 24, 9), (12, 12, 5), rules, axes="auto")
    made = PatchAugmenter(cache, section, (12, 12, 5), CPU, rules)
    for step in range(6):
        samples = drawing.samples(step, range(4))
        image, _ = made(samples)
        for i in range(4):
            z = samples.origin[i, 2] + np.arange(5)
            centre = image[i, 0, 4:8, 4:8].numpy()
            np.testing.assert_allclose(
                centre, np.broadcast_to(z[::-1] + 1 if samples.flip[i, 2] else z + 1, (4, 4, 5)), atol=1e-4
            )


def test_the_plan_draws_what_the_section_says() -> None:
    drawing, _ = plan((40, 40, 40), (16, 16, 16), SpatialRules())
    parts = [changes(drawing.samples(step, range(4))) for step in range(400)]
    drawn = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert drawn["flip"].mean(axis=0) == pytest.approx([0.5, 0, 0.5], abs=0.05)
    assert np.abs(drawn["angles"]).max(axis=0) == pytest.approx(np.deg2rad([10, 20, 30]), rel=0.02)
    assert drawn["zoom"].min(axis=0) == pytest.approx([0.7] * 3, abs=0.01)
    assert drawn["zoom"].max(axis=0) == pytest.approx([1.4] * 3, abs=0.01)
    assert np.abs(np.corrcoef(drawn["zoom"].T) - np.eye(3)).max() < 0.1
    assert np.abs(drawn["shear"]).max(axis=0) == pytest.approx([np.tan(np.deg2rad(10))] * 6, rel=0.02)
    assert np.abs(np.corrcoef(drawn["shear"].T) - np.eye(6)).max() < 0.1
    turns = drawn["quarter_turns"]
    assert (turns > 0).any(axis=1).mean() == pytest.approx(0.6, abs=0.05) and (turns > 0).sum(axis=1).max() == 1
    for axis in range(3):
        counts = np.bincount(turns[:, axis], minlength=4)[1:]
        assert len(counts) == 3 and all(80 < count < 135 for count in counts)  # 107 each


@pytest.mark.parametrize("through_plane", [0, 1, 2])
def test_the_plan_leaves_the_through_plane_axis_alone(through_plane: int) -> None:
    everywhere, _ = plan((40, 40, 40), (16, 16, 16), SpatialRules())
    drawing, _ = plan((40, 40, 40), (16, 16, 16), SpatialRules(through_plane, (through_plane,)))
    for step in range(5):
        samples, others = drawing.samples(step, range(4)), everywhere.samples(step, range(4))
        np.testing.assert_array_equal(samples.flip, others.flip)  # slices may be flipped and mirrored
        for i in range(4):
            matrix = patch_to_volume(
                samples.angles[i], samples.zoom[i], np.zeros(3, bool), np.ones(3), shear=samples.shear[i],
                quarter_turns=samples.quarter_turns[i],
            )  # fmt: skip
            kept = np.eye(3)[through_plane]
            np.testing.assert_array_equal(matrix[through_plane], kept)
            np.testing.assert_array_equal(matrix[:, through_plane], kept)
            moved = [axis for axis in range(3) if axis != through_plane]
            np.testing.assert_array_equal(samples.zoom[i, moved], others.zoom[i, moved])
            assert samples.angles[i, through_plane] == others.angles[i, through_plane] != 0


THICK, CUBE = (0.9, 0.9, 3.3), (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("axes", "patch", "spacings", "stack_axis", "expected"),
    [
        ("all", (32, 32, 1), [THICK], 2, None),
        ("auto", (32, 32, 32), [CUBE], None, None),
        ("auto", (32, 32, 32), [THICK], None, 2),
        ("auto", (32, 32, 32), [(3.3, 0.9, 0.9)], None, 0),
        ("auto", (32, 32, 32), [(0.9, 0.9, 2.6)], None, None),
        ("auto", (32, 32, 32), [CUBE, THICK, THICK], None, 2),  # the median
        ("auto", (32, 32, 32), [(5, 5, 1)], None, None),
        ("auto", (64, 8, 64), [CUBE], None, 1),
        ("auto", (64, 64, 32), [CUBE], None, None),
        ("auto", (32, 32, 32), [CUBE], 1, 1),
        ("auto", (1, 32, 32), [CUBE], None, 0),
        ("in_plane", (32, 32, 32), [(0.9, 0.9, 1.5)], None, 2),
        ("in_plane", (64, 64, 32), [CUBE], None, 2),
        (["x", "z"], (32, 32, 32), [THICK], None, 1),
    ],
)
def test_the_through_plane_axis(axes: Any, patch: Any, spacings: Any, stack_axis: Any, expected: Any) -> None:
    rules = spatial_rules(AugmentConfig.model_validate({"axes": axes}), patch, spacings, stack_axis)
    assert rules.through_plane == expected and rules.turn_axes == (0, 1, 2)
    np.testing.assert_array_equal(rules.moved, [axis != expected for axis in range(3)])


@pytest.mark.parametrize(
    ("axes", "patch", "spacings", "expected"),
    [
        ("all", (32, 32, 32), [CUBE], (0, 1, 2)),
        ("all", (32, 32, 16), [CUBE], (2,)),
        ("all", (32, 32, 32), [THICK], (2,)),
        ("all", (32, 32, 32), [CUBE, THICK], (2,)),
        ("in_plane", (32, 32, 32), [THICK], (2,)),
    ],
)
def test_the_planes_of_quarter_turns(axes: str, patch: Any, spacings: Any, expected: tuple[int, ...]) -> None:
    augment = AugmentConfig.model_validate({"axes": axes, "rotate90": {}})
    rules = spatial_rules(augment, patch, spacings)
    assert rules.turn_axes == expected
    said = "\n".join(rules.describe(augment))
    assert ("augment.rotate90: turns about z only" in said) == (expected == (2,))


@pytest.mark.parametrize(
    ("augment", "patch", "spacings", "message"),
    [
        ({"rotate90": {}}, (32, 24, 16), [CUBE], r"augment\.rotate90: no plane .*patch 32x24x16, voxels 1 x 1 x 1 mm"),
        ({"rotate90": {}}, (32, 32, 16), [(0.8, 0.9, 1)], r"augment\.rotate90: no plane"),
        ({"rotate90": {}, "axes": ["x", "z"]}, (32, 32, 16), [CUBE], r"augment\.rotate90: no plane"),
        ({"axes": "in_plane"}, (32, 32, 32), [CUBE], r"augment\.axes: in_plane, but no axis .*state the plane"),
    ],
)
def test_what_cannot_be_done_is_refused(augment: Any, patch: Any, spacings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        spatial_rules(AugmentConfig.model_validate(augment), patch, spacings)
