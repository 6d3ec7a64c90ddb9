"""Post-processing of masks: its steps, their choice on the kept masks of validation cases, and their use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, label

import fusionseg
from fusionseg import cli
from fusionseg.data.labels.scheme import IGNORE, LabelScheme, Region
from fusionseg.inference.postprocessing.choice import CANDIDATES, MIN_GAIN, choose, try_candidates
from fusionseg.inference.postprocessing.steps import PostProcessing, Steps
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.runs.predictions import read_predictions

TinyRun = Callable[..., Path]
SCHEME = LabelScheme.of_names(["background", "a", "b"])
REGIONS = LabelScheme(SCHEME.classes, regions=(Region("whole", (1, 2), 1), Region("core", (2,), 2)))
SPACING = (1.0, 2.0, 5.0)  # 0.01 ml a voxel


def volume() -> NDArray[np.uint8]:
    """Class a: a cube with a hole, and a far voxel; class b: in the cube, and two voxels."""
    found = np.zeros((12, 12, 12), np.uint8)
    found[1:6, 1:6, 1:6] = 1
    found[3, 3, 3] = 0
    found[2, 2, 2] = 2
    found[9, 9, 9] = 1
    found[10, 1:3, 1] = 2
    return found


def test_steps_of_each_class() -> None:
    given = volume()
    kept = given.copy()
    steps = {"a": Steps(fill_holes=True, largest=True), "b": Steps(smallest_ml=0.02)}
    found = PostProcessing(steps=steps).apply(given, SCHEME, SPACING)
    assert np.array_equal(given, kept)  # a new array
    assert found[3, 3, 3] == 1 and found[9, 9, 9] == 0  # the hole, and the smaller component
    assert found[2, 2, 2] == 0 and (found[10, 1:3, 1] == 2).all()  # one voxel is 0.01 ml; b in a is not filled
    assert np.count_nonzero(found != given) == 3
    whole = PostProcessing(largest_foreground=True).apply(given, SCHEME, SPACING)
    assert whole[2, 2, 2] == 2 and not whole[6:].any() and np.array_equal(whole[:6], given[:6])
    assert np.array_equal(PostProcessing().apply(given, SCHEME, SPACING), given)


def test_steps_of_regions() -> None:
    """Regions are masks of their own: a hole of one is filled, whatever lies in another one."""
    masks = REGIONS.membership_of_indices[:, volume()]
    found = PostProcessing(steps={"whole": Steps(True, True), "core": Steps(largest=True)}).apply(
        masks, REGIONS, SPACING
    )
    assert found[0, 3, 3, 3] and np.count_nonzero(found[0]) == 125 and found.dtype == bool
    assert np.count_nonzero(found[1]) == 2 and found[1, 10, 1, 1]
    largest = PostProcessing(largest_foreground=True).apply(masks, REGIONS, SPACING)
    assert not largest[:, 6:].any() and np.array_equal(largest[:, :6], masks[:, :6])


def plain_dice(mask: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    return 2 * np.count_nonzero(mask & true) / (np.count_nonzero(mask) + np.count_nonzero(true))


@pytest.mark.parametrize("scheme", [SCHEME, REGIONS], ids=["classes", "regions"])
def test_the_dice_of_a_candidate_is_that_of_the_processed_mask(scheme: LabelScheme) -> None:
    """The trial counts components; here each candidate is applied, and SciPy's fill and labels are asked again."""
    rng = np.random.default_rng(0)
    blobs = (rng.random((12, 12, 12)) < 0.2).astype(np.uint8) + volume() * (rng.random((12, 12, 12)) < 0.9)
    indices = np.minimum(blobs, 2).astype(np.uint8)
    true = volume()
    true[:, :, 11] = IGNORE
    outputs = scheme.membership_of_indices[:, indices] if scheme.sigmoid else indices
    trial = try_candidates(outputs, true, np.array([True, True]), scheme, SPACING)
    parts = [label(scheme.membership_of_indices[k][true], np.ones((3, 3, 3)))[0] for k in (0, 1)]
    assert np.allclose(trial.smallest_ml, [np.bincount(numbers.ravel())[1:].min() * 0.01 for numbers in parts])
    for foreground in (False, True):
        for place, steps in enumerate(CANDIDATES):
            chosen = PostProcessing(foreground, dict.fromkeys(scheme.output_names, steps))
            for index, name in enumerate(scheme.output_names):
                alone = PostProcessing(foreground, {name: chosen.steps[name]}).apply(outputs, scheme, SPACING)
                mask = alone[index] if scheme.sigmoid else alone == index + 1
                valid = true != IGNORE
                truth = scheme.membership_of_indices[index][true]
                expected = plain_dice(mask & valid, truth & valid)
                assert trial.dice[int(foreground), place, index] == pytest.approx(expected, abs=1e-12), steps
                if steps.largest:
                    assert label(mask, np.ones((3, 3, 3)))[1] == 1
                if steps == Steps(fill_holes=True) and scheme.sigmoid:
                    assert np.array_equal(binary_fill_holes(mask), mask)


def trials(*pairs: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> list[Any]:
    return [try_candidates(mask, true, np.array([True, True]), SCHEME, SPACING) for mask, true in pairs]


def test_what_helps_is_chosen_and_nothing_else() -> None:
    true = np.zeros((12, 12, 12), np.uint8)
    true[1:6, 1:6, 1:6] = 1
    true[8:11, 1:4, 8:11] = 2
    stray, hollow = true.copy(), true.copy()
    stray[10, 10, 1] = 2  # a false component of class b
    hollow[3, 3, 3] = 0  # a false hole in class a
    found = choose(trials((stray, true), (hollow, true)), SCHEME.output_names)
    assert not found.chosen.largest_foreground  # both classes are the foreground's components
    assert found.chosen.steps["a"] == Steps(fill_holes=True)
    assert found.chosen.steps["b"] == Steps(largest=True)
    assert np.nanmean(found.after) == 1 and np.nanmean(found.before) < 1 - MIN_GAIN
    assert choose(trials((true, true)), SCHEME.output_names).chosen == PostProcessing()
    # Two true components: the largest one alone would lose more than the stray voxel costs. A size helps.
    true[1, 9:12, 1:8] = 2
    stray[1, 9:12, 1:8] = 2
    assert choose(trials((stray, true)), SCHEME.output_names).chosen.steps["b"] == Steps(smallest_ml=0.03)
    # A size above the smallest structure of the labels is never tried.
    small = np.zeros_like(true)
    small[4, 4, 4] = 2
    found = choose(trials((stray, true), (small, small)), SCHEME.output_names)
    assert "b" not in found.chosen.steps
    true[4, 9, 9] = 2  # a small true structure beside large ones counts too
    assert "b" not in choose(trials((stray, true)), SCHEME.output_names).chosen.steps


def test_the_foreground_must_not_cost_any_class() -> None:
    """nnU-Net's rule: the mean rises, and no class falls."""
    true = np.zeros((12, 12, 12), np.uint8)
    true[1:6, 1:6, 1:6], true[6, 3:5, 3:5] = 1, 2
    stray = true.copy()
    stray[10, 10:12, 1], stray[10, 1:3, 10] = 1, 2
    assert choose(trials((stray, true)), SCHEME.output_names).chosen == PostProcessing(largest_foreground=True)
    apart = true.copy()
    apart[6, 3:5, 3:5], apart[9:12, 9:12, 9:12] = 0, 2  # class b is another component here
    both = apart.copy()
    both[10, 10:12, 1] = 1
    assert not choose(trials((stray, true), (both, apart)), SCHEME.output_names).chosen.largest_foreground


@pytest.mark.parametrize(
    "content",
    [
        {"steps": {"a": {"largest": 1}}},
        {"steps": {"a": {"smallest_ml": -1}}},
        {"steps": {"a": {"larges": True}}},
        {"steps": []},
        {"largest_foreground": "yes"},
    ],
)
def test_damaged_files(content: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        PostProcessing.from_json(content)
    plain = PostProcessing(True, {"a": Steps(True, False, 0.3)})
    assert PostProcessing.from_json(json.loads(json.dumps(plain.to_json()))) == plain


def test_from_an_evaluation_to_a_prediction(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The choice reads the kept masks, predict applies it on request only, and the masks are those of `apply`."""
    run = tmp_path / "tiny"
    shutil.copytree(tiny_run(), run)
    words = ["--device", "cpu"]
    assert cli.main(["postprocess", str(run)]) == 2
    assert f"has no complete evaluation with masks; fusionseg evaluate {run} makes it" in capsys.readouterr().err
    assert cli.main(["evaluate", str(run), *words]) == 0
    (run / "checkpoints").rename(run / "away")  # no network is run, but the weights are compared in time
    (run / "checkpoints").mkdir()
    for path in (run / "away").iterdir():
        (run / "checkpoints" / path.name).write_bytes(b"")
        shutil.copystat(path, run / "checkpoints" / path.name)
    assert cli.main(["postprocess", str(run)]) == 0
    said = capsys.readouterr().out
    assert "chosen on 1 validation case of 1 run" in said and "--postprocess auto applies it" in said
    shutil.rmtree(run / "checkpoints")
    (run / "away").rename(run / "checkpoints")
    stored = json.loads((run / "postprocessing.json").read_text())
    assert stored["chosen"]["cases"] == 1 and stored["chosen"]["runs"][0]["evaluation"] == "evaluation"
    summary = json.loads((run / "evaluation/summary.json").read_text())
    assert stored["chosen"]["dice"]["before"]["mean"] == pytest.approx(summary["dice"], nan_ok=True)
    # Steps that change something, whatever this network has learnt.
    stored |= {"largest_foreground": True, "steps": {"ball1": {"largest": True}}}
    (run / "postprocessing.json").write_text(json.dumps(stored))
    image = min(Path(fusionseg.load_run(run).config.data.root).glob("imagesTr/*.nii.gz"))
    predict = ["predict", str(run), "-i", str(image), *words, "-o"]
    assert cli.main([*predict, str(tmp_path / "plain")]) == 0
    said = capsys.readouterr().err
    assert f"{run}/postprocessing.json is not applied: largest component of the foreground; ball1: largest" in said
    assert cli.main([*predict, str(tmp_path / "auto"), "--postprocess", "auto"]) == 0
    assert "post-processing of" in capsys.readouterr().err
    predictor = Predictor([run], PredictOptions("cpu"))
    outputs = predictor.predict_outputs([image])
    source = nibabel.load(image)
    expected = PostProcessing.from_json(stored).apply(outputs, predictor.scheme, source.header.get_zooms())
    masks = {name: np.asarray(nibabel.load(tmp_path / name / image.name).dataobj) for name in ("plain", "auto")}
    assert np.array_equal(masks["plain"], outputs) and np.array_equal(masks["auto"], expected)
    assert not np.array_equal(outputs, expected)
    assert read_predictions(tmp_path / "auto").calls[0]["postprocessing"]["largest_foreground"] is True
    # Masks with and without post-processing are not taken for each other.
    before = (tmp_path / "auto" / image.name).stat().st_mtime_ns
    assert cli.main([*predict, str(tmp_path / "auto"), "--postprocess", "auto", "--skip-existing"]) == 0
    assert (tmp_path / "auto" / image.name).stat().st_mtime_ns == before
    assert cli.main([*predict, str(tmp_path / "auto"), "--skip-existing"]) == 0
    assert (tmp_path / "auto" / image.name).stat().st_mtime_ns != before
    stored["steps"] = {"ball3": {"largest": True}}
    (tmp_path / "other.json").write_text(json.dumps(stored))
    assert cli.main([*predict, str(tmp_path / "new"), "--postprocess", str(tmp_path / "other.json")]) == 2
    assert "steps of 'ball3': did you mean ball" in capsys.readouterr().err
