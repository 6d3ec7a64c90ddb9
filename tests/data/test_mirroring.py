"""Pairs of labels that a left-right flip exchanges: in classes, in outputs, in patches; and the hint about sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patches import CPU, hold, noise_case, planned

from fusionseg import train
from fusionseg.config import AugmentConfig, RunConfig, dump_config
from fusionseg.data.labels.mirroring import mirrored_classes, mirrored_outputs, side_hint
from fusionseg.data.labels.scheme import LabelClass, LabelScheme, Region
from fusionseg.data.loading.patch_augmenter import PatchAugmenter
from fusionseg.utils.errors import UserError

NAMES = ("background", "liver", "kidney_left", "kidney_right", "lung_left", "lung_right")
PAIRS = [["kidney_left", "kidney_right"], ["lung_right", "lung_left"]]
SCHEME = LabelScheme.of_names(NAMES)


def regions(*sets: tuple[int, ...]) -> LabelScheme:
    classes = tuple(LabelClass(name, (value,)) for value, name in enumerate(NAMES))
    return LabelScheme(classes, regions=tuple(Region(str(one), one, 1 + i) for i, one in enumerate(sets)))


def test_classes_and_outputs_are_exchanged() -> None:
    assert mirrored_classes(PAIRS, SCHEME) == mirrored_outputs(PAIRS, SCHEME) == (0, 1, 3, 2, 5, 4)
    assert mirrored_classes(PAIRS[:1], SCHEME) == (0, 1, 3, 2, 4, 5)
    assert mirrored_classes([], SCHEME) == tuple(range(6))
    assert mirrored_outputs(PAIRS, LabelScheme(SCHEME.classes, sigmoid=True)) == (0, 2, 1, 4, 3)  # no background


def test_a_region_becomes_the_region_of_the_mirrored_labels() -> None:
    both, left, right, rest = (2, 3), (2, 4), (3, 5), (1,)
    assert mirrored_outputs(PAIRS, regions(both, left, right, rest)) == (0, 2, 1, 3)
    assert mirrored_outputs(PAIRS, regions(both, left, rest)) is None  # nothing means (3, 5)
    assert mirrored_outputs(PAIRS[:1], regions(both, left, right, rest)) is None


def test_unknown_names_are_all_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError) as caught:
        mirrored_classes([["kidny_left", "kidney_right"], ["background", "liver"]], SCHEME)
    assert len(caught.value.problems) == 2
    assert "there is no class 'kidny_left' in the data set; did you mean kidney_left?" in str(caught.value)
    assert "there is no class 'background'" in str(caught.value)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([["kidney_left"]], "expected pairs of two names"),
        ([["a", "b", "c"]], "expected pairs of two names"),
        ([["a", "a"]], "a pair needs two labels"),
        ([["a", "b"], ["b", "c"]], "b is in two pairs"),
    ],
)
def test_unsound_pairs_are_refused(pairs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig.model_validate({"mirror_pairs": pairs})


@pytest.mark.parametrize("flip", [0, {"prob": 0.5, "axes": ["y", "z"]}, {"prob": 0}])
def test_pairs_without_a_left_right_flip_are_refused(flip: Any) -> None:
    with pytest.raises(ValueError, match=r"mirror_pairs: has no effect.*add x to flip\.axes"):
        AugmentConfig.model_validate({"flip": flip, "mirror_pairs": PAIRS})


def test_a_mirrored_patch_has_the_labels_of_the_other_side(tmp_path: Path) -> None:
    """Only where the left-right axis is flipped, and not the ignored value; also for a warped patch."""
    image, label = noise_case((9, 8, 7))
    label = np.where(label == 3, 255, label).astype(np.uint8)
    cache = hold(tmp_path, (image, label))
    plain = PatchAugmenter(cache, AugmentConfig(), (9, 8, 7), CPU)
    paired = PatchAugmenter(cache, AugmentConfig(), (9, 8, 7), CPU, mirrored=(0, 2, 1))
    table = np.arange(256)
    table[1], table[2] = 2, 1
    for change in ({}, {"angles": (0, 0, 0.4)}):
        samples = planned(4, **change)
        samples.flip[:] = [(True, False, False), (False, True, True), (True, True, False), (False, False, False)]
        before, after = plain(samples), paired(samples)
        np.testing.assert_array_equal(after[0], before[0])
        for i, exchanged in enumerate((True, False, True, False)):
            wanted = table[before[1][i]] if exchanged else before[1][i]
            np.testing.assert_array_equal(after[1][i], wanted)
            assert {1, 2, 255} <= set(np.unique(after[1][i]))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("liver", "kidney_left", "kidney_right"), "[kidney_left, kidney_right]"),
        (("Left-Hippocampus", "Right-Hippocampus"), "[Left-Hippocampus, Right-Hippocampus]"),
        (("RIGHT LUNG", "LEFT LUNG"), "[LEFT LUNG, RIGHT LUNG]"),
        (("lung_upper_lobe_left", "lung_upper_lobe_right"), "[lung_upper_lobe_left, lung_upper_lobe_right]"),
        (("hip_L", "hip_R"), "[hip_L, hip_R]"),
        (("kidney_left", "liver"), ""),
        (("l, left", "l, right"), "['l, left', 'l, right']"),
        (("cleft", "cright", "leftover", "rightover"), ""),
        (("anterior", "posterior"), ""),
    ],
)
def test_names_of_the_two_sides_give_a_hint(names: tuple[str, ...], expected: str) -> None:
    hint = side_hint([], LabelScheme.of_names(("background", *names)))
    assert (f"augment.mirror_pairs: [{expected}]" in hint) if expected else hint == ""


def test_the_hint_names_the_sides_that_no_pair_exchanges() -> None:
    assert "would be learned as the other side too; add [lung_left, lung_right] to augment.mirror_pairs, or" in (
        side_hint(PAIRS[:1], SCHEME)
    )
    assert side_hint(PAIRS, SCHEME) == ""
    assert side_hint([["kidney_left", "liver"]], SCHEME).count("kidney") == 0  # a name in a pair is not suggested again


def test_the_hint_names_classes_that_mirror_pairs_accepts() -> None:
    """The classes of regions: by the pairs of their names, or by the regions if their names have no side."""
    classes = tuple(LabelClass(name, (value,)) for value, name in enumerate(["background", "a", "b", "c", "d"]))
    scheme = LabelScheme(classes, regions=(Region("lung_left", (1, 2), 1), Region("lung_right", (3, 4), 2)))
    hint = side_hint([], scheme)
    assert (
        "pair the classes of these regions in augment.mirror_pairs: lung_left (a, b) and lung_right (c, d), or" in hint
    )
    assert side_hint([["a", "c"]], scheme) and side_hint([["a", "c"], ["b", "d"]], scheme) == ""
    with pytest.raises(
        UserError, match=r"no class 'lung_left' in the data set; it is a region; name its classes: a, b"
    ):
        mirrored_classes([["lung_left", "lung_right"]], scheme)
    named = LabelScheme(SCHEME.classes, regions=(Region("body_left", (1, 2, 4), 1), Region("body_right", (1, 3, 5), 2)))
    assert "mirror_pairs: [[kidney_left, kidney_right], [lung_left, lung_right]], or" in side_hint([], named)
    assert side_hint([], LabelScheme(SCHEME.classes, regions=(Region("kidneys", (2, 3), 1),))) == ""


def test_a_dry_run_refuses_unknown_names_and_hints_at_sides(
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    tiny_config: Callable[..., RunConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make_dataset(tmp_path / "Task01_sides", cases=2, classes=3)
    data = {"folds": 2, "labels": ["background", "ear_left", "ear_right"]}
    file = tmp_path / "config.yaml"

    def dry_run(**augment: Any) -> tuple[int, str]:
        file.write_text(dump_config(tiny_config(root, tmp_path / "runs", data=data, augment=augment)))
        status = train.main(["--config", str(file), "--dry-run"])
        shown = capsys.readouterr()
        return status, " ".join((shown.out + shown.err).split())

    status, text = dry_run()
    assert status == 0 and "add augment.mirror_pairs: [[ear_left, ear_right]]" in text
    status, text = dry_run(mirror_pairs=[["ear_left", "ear_right"]])
    assert status == 0 and "add augment.mirror_pairs" not in text
    status, text = dry_run(mirror_pairs=[["ear_left", "ear_rigth"]], rotate90={}, axes=["x", "y"])
    assert status == 2 and "augment.mirror_pairs: there is no class 'ear_rigth' in the data set; did you mean" in text
    status, text = dry_run(flip={"axes": ["y"]})
    assert status == 0 and "augment.mirror_pairs" not in text
