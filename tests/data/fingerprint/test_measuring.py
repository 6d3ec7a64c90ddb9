"""Measurements of a case are those of independent code, in any voxel order, and of the annotated part only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from fusionseg.data.fingerprint.case import LEVELS, AnnotationGap, CaseFingerprint
from fusionseg.data.fingerprint.fingerprint import pool_intensities
from fusionseg.data.fingerprint.measuring import _intensities, find_gaps, measure_case, spread_sample
from fusionseg.data.formats.case import Case, ChannelFiles
from fusionseg.data.formats.case_reader import Image
from fusionseg.data.formats.geometry import Grid
from fusionseg.data.labels.scheme import IGNORE, LabelClass, LabelScheme, Region

SHAPE = (20, 18, 16)
SCHEME = LabelScheme.of_names(["background", "one", "two"])
AFFINE = np.diag([0.8, 1.0, 2.5, 1.0])


def volume(seed: int = 0, channels: int = 1) -> Any:
    return np.random.default_rng(seed).normal(100, 20, (channels, *SHAPE)).astype(np.float32)


def label() -> Any:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:6, 3:7, 4:8] = 1
    mask[6, 7, 8] = 1  # shares a corner with the block: one component
    mask[12:14, 10:12, 10:12] = 1
    mask[15:18, 12:16, 2:5] = 2
    return mask


def measure(
    values: Any,
    mask: Any,
    scheme: LabelScheme = SCHEME,
    affine: Any = AFFINE,
    annotated: tuple[str, ...] | None = None,
    missing: tuple[int, ...] = (),
) -> CaseFingerprint:
    files = ChannelFiles([Path("image")], missing)
    image = Image(values, Grid(values.shape[1:], affine), ("float32",), (True,) * len(values))
    return measure_case(Case("case", files, Path("label"), annotated=annotated), image, mask, scheme)


def test_outputs_are_counted_as_scipy_counts_them() -> None:
    mask = label()
    found = measure(volume(), mask)
    for value, name in enumerate(("one", "two"), 1):
        inside = mask == value
        parts, count = ndimage.label(inside, np.ones((3, 3, 3)))
        output = found.outputs[name]
        assert output.voxels == inside.sum() and output.components == count
        assert output.volume_mm3 == pytest.approx(inside.sum() * 0.8 * 2.5)
        assert output.largest_component == max(ndimage.sum_labels(inside, parts, range(1, count + 1)))
        box = ndimage.find_objects(inside.astype(int))[0]
        assert output.box == tuple((part.start, part.stop) for part in box)
    assert found.outputs["one"].components == 2
    assert found.foreground_box == ((2, 18), (3, 16), (2, 12))


def test_intensities_are_those_of_the_foreground() -> None:
    values, mask = volume(channels=2), label()
    found = measure(values, mask)
    for channel in range(2):
        inside = values[channel][mask > 0].astype(np.float64)
        one = found.foreground[channel]
        assert one is not None and one.voxels == inside.size
        assert (one.mean, one.deviation) == pytest.approx((inside.mean(), inside.std()), rel=1e-5)
        assert one.quantiles == pytest.approx(np.percentile(inside, LEVELS), rel=1e-5)
        assert (one.percentile_00_5, one.median) == (one.quantiles[2], one.quantiles[14])


def test_geometry_does_not_depend_on_the_order_of_the_voxels() -> None:
    """The same patient, stored with other axes: only the recorded orientation differs."""
    values, mask = volume(), label()
    turned = np.array([[0, 0, -0.8, 0], [1.0, 0, 0, 0], [0, -2.5, 0, 0], [0, 0, 0, 1]])  # axes A, I, L
    turned[:3, 3] = 19 * 0.8, 0, 15 * 2.5
    other = measure(
        values[0].transpose(1, 2, 0)[None, :, ::-1, ::-1].copy(), mask.transpose(1, 2, 0)[:, ::-1, ::-1], affine=turned
    )
    plain = measure(values, mask)
    assert (plain.orientation, other.orientation) == ("RAS", "AIL")
    assert other.shape == SHAPE and other.spacing_mm == (0.8, 1.0, 2.5)
    assert other.foreground_box == plain.foreground_box and other.outputs == plain.outputs
    assert other.foreground == plain.foreground


def test_a_region_is_measured_as_one_output() -> None:
    classes = tuple(LabelClass(name, (value,)) for value, name in enumerate(("background", "edema", "core")))
    scheme = LabelScheme(classes, regions=(Region("whole", (1, 2), 1), Region("core", (2,), 2)))
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:10, 4:10, 4:10] = 1
    mask[6:8, 6:8, 6:8] = 2
    found = measure(volume(), mask, scheme).outputs
    assert (found["whole"].voxels, found["whole"].components) == (216, 1)
    assert (found["core"].voxels, found["core"].box) == (8, ((6, 8), (6, 8), (6, 8)))


def test_classes_that_a_case_does_not_annotate_and_missing_channels_are_left_out() -> None:
    values = volume(channels=2)
    values[1] = 0
    found = measure(values, label(), annotated=("two",), missing=(1,))
    assert list(found.outputs) == ["two"]
    assert found.whole[1] is None and found.foreground[1] is None and found.foreground[0] is not None


def test_a_class_that_does_not_occur_and_a_case_without_a_label() -> None:
    found = measure(volume(), np.zeros(SHAPE, np.uint8))
    assert found.labelled and found.outputs["one"].voxels == 0 and found.outputs["one"].box is None
    assert found.foreground == (None,) and found.foreground_box is None
    unlabelled = measure(volume(), None)
    assert not unlabelled.labelled and unlabelled.outputs == {} and unlabelled.whole[0] is not None


def test_boxes_of_the_voxels_that_are_not_zero_and_of_the_body() -> None:
    values = np.zeros((1, *SHAPE), np.float32)
    values[0, 3:10, 4:12, 5:14] = volume()[0, 3:10, 4:12, 5:14]
    found = measure(values, None)
    assert found.nonzero_box == ((3, 10), (4, 12), (5, 14)) and found.body_box is None
    assert found.nonzero_voxels == 7 * 8 * 9 and found.nonzero_share == pytest.approx(504 / 5760)
    # More than half of the voxels are 0: they are not part of the intensities.
    assert found.whole[0] is not None and found.whole[0].minimum > 0
    scan = measure(np.where(values == 0, -1000, values).astype(np.float32), None)
    assert scan.body_box == ((3, 10), (4, 12), (5, 14)) and scan.nonzero_box == ((0, 20), (0, 18), (0, 16))


def test_gaps_are_empty_slices_between_slices_that_overlap() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[5:12, 4:10, 2:12] = True
    assert find_gaps(mask) == ()
    mask[:, :, [5, 6, 9]] = False
    assert find_gaps(mask) == (AnnotationGap(2, 5, 7), AnnotationGap(2, 9, 10))
    assert AnnotationGap(2, 5, 7).slices == 2
    ignored = np.zeros(SHAPE, bool)
    ignored[0, 0, 9] = True  # stated as not annotated
    assert find_gaps(mask, ignored) == (AnnotationGap(2, 5, 7),)
    apart = np.zeros(SHAPE, bool)
    apart[2:5, 2:5, 2:5] = apart[12:15, 12:15, 9:12] = True  # two lesions in different places
    assert find_gaps(apart) == ()
    pair = np.zeros((24, 8, 8), bool)
    pair[:6] = pair[17:] = True  # left and right
    assert find_gaps(pair) == ()
    pair[:7] = True
    assert find_gaps(pair) == (AnnotationGap(0, 7, 17),)


def test_gaps_have_the_indices_of_the_volume() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:9, 4:9, 6:14] = 1
    mask[5:9, 4:9, 9] = 0
    assert measure(volume(), mask).outputs["one"].gaps == (AnnotationGap(2, 9, 10),)
    partly = LabelScheme(SCHEME.classes, ignore=3)
    mask[:, :, 9] = IGNORE
    found = measure(volume(), mask, partly)
    assert found.outputs["one"].gaps == () and found.ignored_voxels == 20 * 18


@pytest.mark.parametrize("shape", [(40, 21, 49), (64, 64, 64), (7, 7, 7)])
def test_a_sample_has_voxels_of_every_plane(shape: tuple[int, int, int]) -> None:
    for axis in range(3):
        planes = np.broadcast_to(np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)]), shape)
        sample = spread_sample(np.ascontiguousarray(planes), 2000)
        assert sample.size <= 2000 and len(np.unique(sample)) == shape[axis]


def test_pooled_intensities_are_those_of_all_voxels_where_cases_have_equally_many() -> None:
    rng = np.random.default_rng(3)
    parts = [rng.normal(100 + 10 * k, 10 + k, 20_000).astype(np.float32) for k in range(6)]
    pooled = pool_intensities([_intensities(part) for part in parts] + [None])
    every = np.concatenate(parts).astype(np.float64)
    assert pooled is not None and pooled.voxels == every.size
    assert (pooled.mean, pooled.deviation) == pytest.approx((every.mean(), every.std()), rel=1e-5)
    # Linear between the known percentiles: exact to a few hundredths of a deviation within 0.5 to 99.5.
    assert pooled.quantiles[2:-2] == pytest.approx(np.percentile(every, LEVELS[2:-2]), abs=0.03 * every.std())
    assert (pooled.minimum, pooled.maximum) == pytest.approx((every.min(), every.max()))
    assert pool_intensities([None]) is None


def test_each_case_has_the_same_weight() -> None:
    small, large = np.full(10, 1, np.float32), np.full(1000, 3, np.float32)
    pooled = pool_intensities([_intensities(small), _intensities(large)])
    assert pooled is not None and (pooled.mean, pooled.deviation) == (2, 1)
