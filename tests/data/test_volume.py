"""From files to the network's frame: where things lie, what they are worth, and every refusal."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fusionseg.config import DataConfig
from fusionseg.config.data.augmentation import AugmentConfig
from fusionseg.config.data.cache import CacheConfig
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.data.formats.problems import CaseError
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.loading.device_cache import DeviceCache
from fusionseg.data.loading.patch_augmenter import PatchAugmenter
from fusionseg.data.loading.sampling_plan import SamplePlan
from fusionseg.data.preprocessing.intensity import foreground_box, normalise
from fusionseg.data.preprocessing.store import Store, write_case
from fusionseg.data.preprocessing.volume import load_volume

CPU = torch.device("cpu")
RAW = {"clip": [0, 1000]}
"""Intensities as they are, divided by 1000."""


def save(path: Path, array: NDArray[Any], affine: NDArray[np.float64] | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def settings(**changes: Any) -> DataConfig:
    return DataConfig.model_validate({"intensity": RAW, **changes})


def oriented(codes: str, spacing: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> NDArray[np.float64]:
    """An affine whose voxel axes point to these directions."""
    axes = nibabel.orientations.axcodes2ornt(tuple(codes))
    affine = np.zeros((4, 4))
    for voxel_axis, (world_axis, sign) in enumerate(axes):
        affine[int(world_axis), voxel_axis] = sign * spacing[voxel_axis]
    affine[:, 3] = (-12.0, 7.0, 30.0, 1.0)
    return affine


def to_world(affine: NDArray[np.float64], voxel: Any) -> NDArray[np.float64]:
    return affine[:3, :3] @ np.asarray(voxel, float) + affine[:3, 3]


def centroid(weights: NDArray[Any]) -> NDArray[np.float64]:
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in weights.shape), indexing="ij"))
    return (grid * weights).reshape(3, -1).sum(axis=1) / weights.sum()


@pytest.fixture
def blob() -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float64]]:
    """A smooth bright blob, its label, and the voxel of its centre."""
    shape, centre = (20, 24, 16), np.array([8.0, 13.0, 7.0])
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    distance = np.linalg.norm(grid - centre, axis=-1)
    return (800 * np.exp(-((distance / 3) ** 2))).astype(np.float32), (distance <= 4).astype(np.uint8), centre


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
@pytest.mark.parametrize("wanted", ["RAS", "LPI"])
def test_reorientation_moves_no_voxel_in_the_world(tmp_path: Path, codes: str, wanted: str) -> None:
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 1000, (6, 7, 8), np.int16), rng.integers(0, 4, (6, 7, 8)).astype(np.uint8)
    affine = oriented(codes)
    volume = load_volume(
        [save(tmp_path / "i.nii.gz", image, affine)],
        save(tmp_path / "l.nii.gz", label, affine),
        settings(orientation=wanted),
        LabelScheme.of_names("0123"),
    )
    assert "".join(nibabel.aff2axcodes(volume.affine)) == wanted
    assert volume.label is not None
    assert volume.image.dtype == np.float32 and volume.label.dtype == np.uint8
    assert volume.image.flags["C_CONTIGUOUS"]
    back = np.linalg.inv(affine)
    for voxel in [(0, 0, 0), (1, 2, 3), (volume.label.shape[0] - 1, 0, 2)]:
        source = tuple(np.round(back @ [*to_world(volume.affine, voxel), 1])[:3].astype(int))
        assert volume.image[(0, *voxel)] * 1000 == pytest.approx(image[source], abs=1e-3)
        assert volume.label[voxel] == label[source]
    assert sorted(volume.label.ravel()) == sorted(label.ravel())
    assert volume.original_shape == (6, 7, 8)
    np.testing.assert_allclose(volume.original_affine, affine)


def test_null_orientation_and_spacing_keep_the_file_as_it_is(tmp_path: Path) -> None:
    image = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
    affine = oriented("PIL")
    volume = load_volume([save(tmp_path / "i.nii.gz", image, affine)], None, settings(orientation=None), None)
    np.testing.assert_allclose(volume.image[0] * 1000, image, atol=1e-3)
    np.testing.assert_allclose(volume.affine, affine)
    assert volume.label is None
    assert volume.spacing == pytest.approx((1, 2, 3))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASL"])
@pytest.mark.parametrize("wanted", [(1.0, 1.0, 1.5), (2.0, 3.0, 2.0)])
def test_resampling_keeps_a_marked_point_where_it_is(
    tmp_path: Path, codes: str, wanted: tuple[float, float, float], blob: Any
) -> None:
    image, label, centre = blob
    affine = oriented(codes, (1.5, 1.0, 2.0))
    volume = load_volume(
        [save(tmp_path / "i.nii.gz", image, affine)],
        save(tmp_path / "l.nii.gz", label, affine),
        settings(spacing=wanted),
        LabelScheme.of_names("01"),
    )
    assert volume.spacing == pytest.approx(wanted)
    assert volume.label is not None and volume.label.shape == volume.image.shape[1:]
    assert volume.label.shape != label.shape
    point = to_world(affine, centre)
    np.testing.assert_allclose(to_world(volume.affine, centroid(volume.image[0])), point, atol=0.1)
    np.testing.assert_allclose(to_world(volume.affine, centroid(volume.label)), point, atol=0.5)
    # The physical size stays: one voxel more or less at the border.
    extent = np.array(volume.label.shape) * wanted
    axes = [int(np.argmax(np.abs(affine[world, :3]))) for world in range(3)]
    np.testing.assert_allclose(extent, (np.array(label.shape) * (1.5, 1.0, 2.0))[axes], atol=max(wanted))
    assert set(np.unique(volume.label)) == {0, 1}
    mm3 = label.sum() * 1.5 * 1.0 * 2.0
    assert volume.label.sum() * np.prod(wanted) == pytest.approx(mm3, rel=0.15)


def test_a_spacing_that_is_already_right_is_not_resampled(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 1000, (6, 7, 8), np.int16)
    path = save(tmp_path / "i.nii.gz", image, np.diag([1.0, 1.0002, 2.0, 1.0]))
    volume = load_volume([path], None, settings(spacing=[1, 1, 2]), None)
    np.testing.assert_allclose(volume.image[0] * 1000, image, atol=1e-3)


def test_an_oblique_affine_keeps_its_marked_point(tmp_path: Path, blob: Any) -> None:
    image, _, centre = blob
    angle = np.deg2rad(20)
    affine = oriented("RAS", (1.0, 1.0, 2.0))
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ affine[:3, :3]
    volume = load_volume([save(tmp_path / "i.nii.gz", image, affine)], None, settings(spacing=[1.5, 1.5, 1.5]), None)
    assert volume.spacing == pytest.approx((1.5, 1.5, 1.5))
    np.testing.assert_allclose(to_world(volume.affine, centroid(volume.image[0])), to_world(affine, centre), atol=0.1)


@pytest.mark.parametrize("codes", ["RAS", "LPS"])
def test_the_foreground_crop_moves_the_affine_along(tmp_path: Path, codes: str) -> None:
    image, label = np.zeros((20, 20, 20), np.int16), np.zeros((20, 20, 20), np.uint8)
    image[5:9, 10:16, 3:5] = 500
    image[6, 12, 4] = 900
    label[6, 12, 4] = 1
    affine = oriented(codes)
    volume = load_volume(
        [save(tmp_path / "i.nii.gz", image, affine)],
        save(tmp_path / "l.nii.gz", label, affine),
        settings(crop_foreground={"threshold": 100, "margin": 4}),
        LabelScheme.of_names("01"),
    )
    assert volume.label is not None
    assert volume.image.shape == (1, 12, 14, 9)  # 4 more on every side, but at the volume's end: 3 - 4 < 0
    assert volume.label.shape == (12, 14, 9)
    brightest = np.unravel_index(int(volume.image[0].argmax()), volume.label.shape)
    np.testing.assert_allclose(to_world(volume.affine, brightest), to_world(affine, (6, 12, 4)), atol=1e-4)
    assert volume.label[brightest] == 1 and volume.label.sum() == 1
    assert volume.original_shape == (20, 20, 20)
    np.testing.assert_allclose(volume.original_affine, affine)


def test_the_foreground_box_takes_little_memory() -> None:
    image = np.ones((2, 64, 64, 64), np.float32)
    tracemalloc.start()
    foreground_box(image, 0, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < image.nbytes / 20


def test_foreground_box_of_nothing_is_everything_and_any_channel_counts() -> None:
    image = np.zeros((2, 5, 6, 7), np.float32)
    assert foreground_box(image, 1, 2) == (slice(0, 5), slice(0, 6), slice(0, 7))
    image[0, 1, 2, 3] = image[1, 3, 2, 3] = 2
    assert foreground_box(image, 1, 0) == (slice(1, 4), slice(2, 3), slice(3, 4))
    assert foreground_box(image, 2, 0) == (slice(0, 5), slice(0, 6), slice(0, 7))  # above, not at


def intensity(**raw: Any) -> Any:
    return DataConfig.model_validate({"intensity": raw}).intensity


@pytest.fixture
def raw() -> NDArray[np.float32]:
    values = np.random.default_rng(1).normal(200, 60, (2, 12, 11, 10)).astype(np.float32)
    values[1] *= 3
    return values


def test_window(raw: NDArray[np.float32]) -> None:
    out = normalise(raw, [intensity(clip=[150, 350])] * len(raw))
    np.testing.assert_allclose(out, np.clip((raw.astype(float) - 150) / 200, 0, 1), atol=1e-6)
    assert out.dtype == np.float32


def test_zscore_is_per_channel(raw: NDArray[np.float32]) -> None:
    out = normalise(raw, [intensity(mode="zscore")] * len(raw))
    np.testing.assert_allclose(out.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(axis=(1, 2, 3)), 1, atol=1e-5)
    np.testing.assert_allclose(out[1], (raw[1] - raw[1].mean()) / raw[1].std(), atol=1e-4)


def test_zscore_clips_to_the_percentiles_before_it_measures(raw: NDArray[np.float32]) -> None:
    raw[0, 0, 0, 0] = 1e6
    out = normalise(raw, [intensity(mode="zscore", percentiles=[5, 95])] * len(raw))
    values = raw[0].astype(float)
    values = np.clip(values, *np.percentile(values, [5, 95]))
    np.testing.assert_allclose(out[0], (values - values.mean()) / values.std(), atol=1e-5)
    assert out[0, 0, 0, 0] == out[0].max() < 3


def test_zscore_with_clip(raw: NDArray[np.float32]) -> None:
    values = np.clip(raw[0].astype(float), 100, 300)
    out = normalise(raw, [intensity(mode="zscore", clip=[100, 300])] * len(raw))
    np.testing.assert_allclose(out[0], (values - values.mean()) / values.std(), atol=1e-5)


def test_zscore_with_a_fixed_mean_keeps_the_unit_of_the_scanner(raw: NDArray[np.float32]) -> None:
    """nnU-Net's normalisation of CT: the same raw value becomes the same number in every volume."""
    out = normalise(raw, [intensity(mode="zscore", clip=[100, 300], mean=150.0, deviation=40.0)] * len(raw))
    np.testing.assert_allclose(out, (np.clip(raw.astype(float), 100, 300) - 150) / 40, atol=1e-5)


@pytest.mark.parametrize("more", [{}, {"percentiles": [2, 98]}, {"clip": [120, 260]}])
def test_nonzero_leaves_what_is_zero_alone(raw: NDArray[np.float32], more: dict[str, Any]) -> None:
    raw[:, :4] = 0
    values = raw[0, 4:].astype(float)
    if "clip" in more:
        values = np.clip(values, *more["clip"])
    if "percentiles" in more:
        values = np.clip(values, *np.percentile(values, more["percentiles"]))
    out = normalise(raw, [intensity(mode="zscore", nonzero=True, **more)] * len(raw))
    assert (out[:, :4] == 0).all()
    np.testing.assert_allclose(out[0, 4:], (values - values.mean()) / values.std(), atol=1e-5)


def test_outside_a_skull_stripped_volume_is_the_air_in_it(tmp_path: Path) -> None:
    """Air is 0 after normalisation of the other voxels; their lowest is far below."""
    raw = np.random.default_rng(3).integers(100, 400, (2, 8, 9, 10)).astype(np.int16)
    raw[:, :3] = 0
    path = save(tmp_path / "i.nii.gz", np.moveaxis(raw, 0, -1))
    stripped = {"intensity": {"mode": "zscore", "nonzero": True}}
    volume = load_volume([path], None, settings(**stripped), None)
    assert volume.background == (0, 0) and volume.image[0, 0, 0, 0] == 0 and volume.image.min() < -1
    whole = load_volume([path], None, settings(intensity={"mode": "zscore"}), None)
    assert whole.background == tuple(whole.image.min(axis=(1, 2, 3)))
    record = write_case(tmp_path, "a", volume, [], "float16")
    assert record.background == (0, 0)
    cache = DeviceCache(
        [(Store(tmp_path, "t", ("a", "b"), LabelScheme.of_names("b"), {"a": record}), "a")], CacheConfig(), CPU
    )
    sampler = PatchAugmenter(cache, AugmentConfig(flip=0), (16, 16, 16), CPU)
    options = {
        "seed": 0,
        "patch": (16, 16, 16),
        "global_batch": 1,
        "samples_per_volume": 1,
        "foreground": 0.0,
        "channels": 1,
    }
    plan = SamplePlan(cache.plan_cases, AugmentConfig(flip=0), **options)
    image, _ = sampler(plan.samples(0, range(1)))
    corners = image[0, :, ::15, ::15, ::15]
    assert (corners == 0).all()


@pytest.mark.parametrize("value", [0.0, 7.0])
@pytest.mark.parametrize("mode", [{}, {"nonzero": True}, {"percentiles": [1, 99]}])
def test_a_constant_image_becomes_zero(value: float, mode: dict[str, Any]) -> None:
    out = normalise(np.full((1, 4, 4, 4), value, np.float32), [intensity(mode="zscore", **mode)])
    assert (out == 0).all()


def test_channels_as_files_and_as_4d_are_the_same(tmp_path: Path) -> None:
    parts = np.random.default_rng(2).integers(0, 1000, (3, 6, 7, 8), np.int16)
    affine = oriented("LPS")
    files = [save(tmp_path / f"i_{n:04d}.nii.gz", part, affine) for n, part in enumerate(parts)]
    whole = save(tmp_path / "i4.nii.gz", np.moveaxis(parts, 0, -1), affine)
    one = load_volume(files, None, settings(), None)
    other = load_volume([whole], None, settings(), None)
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_allclose(one.affine, other.affine)
    np.testing.assert_allclose(one.image[:, ::-1, ::-1] * 1000, parts, atol=1e-3)


def test_a_label_with_a_slightly_other_affine_stays_on_its_voxels(tmp_path: Path) -> None:
    """Corners less than a tenth of a voxel apart are headers that were rounded, not another place."""
    image, label = np.zeros((8, 8, 8), np.int16), np.zeros((8, 8, 8), np.uint8)
    image[2, 3, 4], label[2, 3, 4] = 900, 1
    other = np.diag([1.005, 1.0, 1.0, 1.0])
    other[0, 3] = 0.05
    paths = save(tmp_path / "i.nii.gz", image), save(tmp_path / "l.nii.gz", label, other)
    volume = load_volume([paths[0]], paths[1], settings(), LabelScheme.of_names("01"))
    assert volume.label is not None and volume.label[2, 3, 4] == 1 and volume.label.sum() == 1
    finer = load_volume([paths[0]], paths[1], settings(spacing=[0.5, 0.5, 0.5]), LabelScheme.of_names("01"))
    assert finer.label is not None and finer.label.shape == finer.image.shape[1:]
    np.testing.assert_allclose(centroid(finer.label), centroid(finer.image[0]), atol=0.6)
    other[0, 3] = 0.1
    with pytest.raises(CaseError, match=r"the label lies 0.135 mm \(0.135 voxels\) away from the image at a corner"):
        load_volume([paths[0]], save(tmp_path / "l.nii.gz", label, other), settings(), LabelScheme.of_names("01"))


def test_whole_numbers_stored_as_floats_are_labels(tmp_path: Path) -> None:
    label = np.zeros((8, 8, 8), np.float64)
    label[1:3] = 2.0
    image = save(tmp_path / "i.nii.gz", IMAGE)
    volume = load_volume([image], save(tmp_path / "l.nii.gz", label), settings(), LabelScheme.of_names("012"))
    assert volume.label is not None
    np.testing.assert_array_equal(volume.label, label)


def _label(**at: float) -> NDArray[np.float32]:
    label = np.zeros((8, 8, 8), np.float32)
    for voxel, value in at.items():
        label[int(voxel[1]), 0, 0] = value
    return label


IMAGE = np.ones((8, 8, 8), np.float32)
IMAGE[0, 0, 0] = 2  # one that is the same everywhere is refused
SINGULAR = np.diag([1.0, 1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (
            np.where(np.arange(512).reshape(8, 8, 8) == 77, np.nan, IMAGE),
            None,
            "has 1 NaN and 0 infinite voxels of 512",
        ),
        (
            np.where(np.arange(512).reshape(8, 8, 8) < 2, np.inf, IMAGE),
            None,
            "has 0 NaN and 2 infinite voxels of 512",
        ),
        (IMAGE, np.zeros((8, 8, 9), np.uint8), r"\(8, 8, 8\) and label \(8, 8, 9\) differ in shape"),
        (IMAGE, _label(v1=3), r"holds \[3\], and the data set's labels are 0 to 2"),
        (IMAGE, _label(v1=-1, v2=7), r"holds \[-1, 7\]"),
        (IMAGE, _label(v1=0.5), r"not integers, such as \[0.5\]"),
        (IMAGE, _label(v1=np.nan), "not integers"),
        (IMAGE[0], None, r"the image is 2D \(8, 8\)"),
    ],
)
def test_refusals(tmp_path: Path, image: NDArray[Any], label: NDArray[Any] | None, message: str) -> None:
    label_path = None if label is None else save(tmp_path / "l.nii.gz", label)
    with pytest.raises(CaseError, match=message):
        load_volume([save(tmp_path / "i.nii.gz", image)], label_path, settings(), LabelScheme.of_names("012"))


def test_a_singular_affine_is_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(IMAGE, None)
    image.header.set_sform(SINGULAR, code=1)
    image.header.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "i.nii.gz")
    with pytest.raises(ValueError, match="affine has no inverse"):
        load_volume([tmp_path / "i.nii.gz"], None, settings(), None)


def test_channels_of_other_shapes_are_refused(tmp_path: Path) -> None:
    paths = [save(tmp_path / "a.nii.gz", IMAGE), save(tmp_path / "b.nii.gz", IMAGE[:7])]
    with pytest.raises(CaseError, match=r"a.nii.gz \(8, 8, 8\) and channel \(7, 8, 8\) differ in shape"):
        load_volume(paths, None, settings(), None)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "missing"])
def test_what_cannot_be_read_is_a_value_error(tmp_path: Path, damage: str) -> None:
    path = save(tmp_path / "i.nii.gz", np.random.default_rng(0).integers(0, 999, (16, 16, 16), np.int16))
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "garbage": b"not a volume" * 9, "empty": b""}[damage])
    with pytest.raises(CaseError, match="cannot be read"):
        load_volume([path], None, settings(), None)


def test_voxel_sizes() -> None:
    assert voxel_sizes(oriented("PIR", (0.5, 2.0, 3.0))) == pytest.approx((0.5, 2.0, 3.0))
