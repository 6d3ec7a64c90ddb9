"""Prediction: masks in the geometry of their images. Evaluation: scores that can be recomputed from the masks."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib.image
import nibabel
import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from monai.networks.utils import one_hot
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from end_to_end.conftest import Train
from end_to_end.runs import COMMANDS, Ended, Program, records, snapshot

Image = nibabel.Nifti1Image
Predict = Callable[..., Path]

SMALLER_THAN_PATCH = "smaller_than_patch"
pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own

ORIENTATIONS = ("RAS", "LPS", "PIR", "SAL")


@pytest.fixture(scope="module")
def predict(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Predict:
    """`predict(runs, inputs, *options)` -> the folder of the masks."""

    def start(runs: Sequence[Path], inputs: Path, *options: object) -> Path:
        masks = tmp_path_factory.mktemp("predictions") / "masks"
        program.warm(COMMANDS, "predict", *runs, "--input", inputs, "--output", masks, *options).wait().expect(0)
        return masks

    return start


@pytest.fixture(scope="module")
def scans(balls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with different headers.

    One volume in four orientations (reoriented by nibabel, with an oblique affine); one volume with anisotropic voxels;
    one smaller than the patch; one of scaled integers; one of uncompressed float64; one with sform and qform codes.
    """
    folder = tmp_path_factory.mktemp("scans")
    volume = nibabel.load(balls / "imagesTr/case_000.nii.gz")
    values = np.asarray(volume.dataobj)
    oblique = volume.affine @ _turned(10)
    for axes in ORIENTATIONS:
        _save(_reorient(Image(values, oblique), axes), folder / f"turned_{axes}.nii.gz")
    _save(Image(values[::2, :, :].copy(), np.diag([3.5, 0.7, 1.2, 1])), folder / "thin.nii.gz")
    _save(Image(values[6:18, 5:17, 4:13].copy(), volume.affine), folder / f"{SMALLER_THAN_PATCH}.nii.gz")
    _save(Image(values.astype(np.float64), volume.affine), folder / "doubles.nii")
    scaled = Image(values + 0.5, volume.affine)  # halves, stored as integers with a slope and an intercept
    scaled.set_data_dtype(np.int16)
    _save(scaled, folder / "scaled.nii.gz")
    assert nibabel.load(folder / "scaled.nii.gz").dataobj.slope != 1
    codes = Image(values, volume.affine)
    codes.set_sform(volume.affine, code=4)
    codes.set_qform(volume.affine, code=2)
    codes.header.set_xyzt_units("mm", "sec")
    _save(codes, folder / "codes.nii.gz")
    return folder


@pytest.fixture(scope="module")
def masks(predict: Predict, trained: Path, scans: Path) -> Path:
    """The masks of `scans` by `trained`."""
    return predict([trained], scans)


@pytest.fixture(scope="module")
def masks_resampled(predict: Predict, trained_resampled: Path, scans: Path) -> Path:
    """The masks of `scans` by a run that resamples and crops its volumes."""
    return predict([trained_resampled], scans)


# -- the geometry of the masks -------------------------------------------------------------------------------


@pytest.mark.parametrize("made", ["masks", "masks_resampled"])
def test_masks_have_the_geometry_of_their_images(scans: Path, made: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(made)
    inputs = sorted(scans.iterdir())
    assert sorted(path.name for path in found.iterdir()) == sorted(
        ["prediction.json", *(f"{_case(path)}.nii.gz" for path in inputs)]
    )
    for path in inputs:
        image, mask = nibabel.load(path), nibabel.load(found / f"{_case(path)}.nii.gz")
        assert mask.shape == image.shape, path
        assert (mask.affine == image.affine).all(), path
        assert mask.get_data_dtype() == np.uint8
        assert nibabel.aff2axcodes(mask.affine) == nibabel.aff2axcodes(image.affine)
        for field in ("sform_code", "qform_code", "pixdim", "xyzt_units"):
            assert (mask.header[field] == image.header[field]).all(), (path, field)
        assert (mask.get_sform() == image.get_sform()).all()
        assert mask.header.get_slope_inter() in ((1, 0), (None, None))
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}


def test_masks_match_the_labels(masks: Path, masks_resampled: Path, balls: Path) -> None:
    label = np.asarray(nibabel.load(balls / "labelsTr/case_000.nii.gz").dataobj)
    for name in ("codes", "doubles", "scaled"):
        for folder, least in ((masks, 0.9), (masks_resampled, 0.8)):
            mask = _values(folder / f"{name}.nii.gz")
            assert min(_dice(mask, label, value) for value in (1, 2)) > least, (name, folder)


def test_masks_do_not_depend_on_scaling_and_type_of_the_file(masks: Path) -> None:
    """The z-score removes the scaling; float64 and compression do not change the values."""
    assert (_values(masks / "doubles.nii.gz") == _values(masks / "codes.nii.gz")).all()
    assert (_values(masks / "scaled.nii.gz") != _values(masks / "codes.nii.gz")).mean() < 1e-3


@pytest.mark.parametrize("made", ["masks", "masks_resampled"])
def test_masks_do_not_depend_on_the_orientation_of_the_file(
    made: str, balls: Path, request: pytest.FixtureRequest
) -> None:
    """A volume that is stored in four orientations has the same mask in world coordinates."""
    found = request.getfixturevalue(made)
    label = np.asarray(nibabel.load(balls / "labelsTr/case_000.nii.gz").dataobj)
    reference = _reorient(nibabel.load(found / "turned_RAS.nii.gz"), "RAS")
    for axes in ORIENTATIONS:
        stored = nibabel.load(found / f"turned_{axes}.nii.gz")
        assert "".join(nibabel.aff2axcodes(stored.affine)) == axes
        mask = _reorient(stored, "RAS")
        assert mask.affine == pytest.approx(reference.affine, abs=1e-4)
        ours, theirs = np.asarray(mask.dataobj), np.asarray(reference.dataobj)
        assert (ours == theirs).mean() > 0.999, axes
        assert min(_dice(ours, label, value) for value in (1, 2)) > 0.8, axes


def test_single_file_and_existing_masks(
    program: Program, trained: Path, scans: Path, tmp_path: Path, masks: Path
) -> None:
    output = tmp_path / "out"
    command = ("predict", trained, "--output", output)
    program.warm(COMMANDS, *command, "--input", scans / "thin.nii.gz").wait().expect(0)
    assert sorted(path.name for path in output.iterdir()) == ["prediction.json", "thin.nii.gz"]
    assert (_values(output / "thin.nii.gz") == _values(masks / "thin.nii.gz")).all()

    marked = Image(np.full((2, 2, 2), 7, np.uint8), np.eye(4))
    nibabel.save(marked, output / "thin.nii.gz")
    before = snapshot(output)
    program.warm(COMMANDS, *command, "--input", scans, "--skip-existing").wait().expect(0)
    after = snapshot(output)
    assert after["thin.nii.gz"] == before["thin.nii.gz"]
    assert len(after) == len(list(scans.iterdir())) + 1

    # predict replaces only masks that it has written itself.
    ended = program.warm(COMMANDS, *command, "--input", scans / "thin.nii.gz").wait().expect(2)
    assert f"{output}/thin.nii.gz: was not written by fusionseg predict" in ended.err
    assert snapshot(output) == after
    (output / "thin.nii.gz").unlink()
    for _ in range(2):
        program.warm(COMMANDS, *command, "--input", scans / "thin.nii.gz").wait().expect(0)
    assert (_values(output / "thin.nii.gz") == _values(masks / "thin.nii.gz")).all()


# -- slabs, ensembles, test-time augmentation
# -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "whole"),
    [("trained", "masks"), ("trained_resampled", "masks_resampled")],
    ids=["plain", "resampled"],
)
def test_prediction_in_slabs_equals_that_of_the_whole_volume(
    predict: Predict, scans: Path, tmp_path: Path, request: pytest.FixtureRequest, run: str, whole: str
) -> None:
    """With memory for a part of the logits, and with memory for a single slice.

    The windows are the same in other batches: voxels may differ where two classes have almost equal probabilities.
    """
    names = ("codes.nii.gz", "turned_PIR.nii.gz", f"{SMALLER_THAN_PATCH}.nii.gz")
    for name in names:
        shutil.copy(scans / name, tmp_path / name)
    for memory_gb in ("1.0e-4", "1.0e-7"):
        slabs = predict([request.getfixturevalue(run)], tmp_path, "--memory", memory_gb)
        for name in names:
            expected = _values(request.getfixturevalue(whole) / name)
            assert (_values(slabs / name) == expected).mean() > 0.9999, (name, memory_gb)


def test_ensemble_has_the_classes_on_which_its_members_agree(
    predict: Predict,
    trained: Path,
    trained_resampled: Path,
    scans: Path,
    masks: Path,
    masks_resampled: Path,
    balls: Path,
) -> None:
    both, swapped = (predict(runs, scans) for runs in ([trained, trained_resampled], [trained_resampled, trained]))
    differs = 0
    for path in sorted(both.glob("*.nii.gz")):
        ours, one, other = (_values(folder / path.name) for folder in (both, masks, masks_resampled))
        agreed = one == other
        assert (ours[agreed] == one[agreed]).all()
        assert (_values(swapped / path.name) == ours).mean() > 0.999
        differs += int((~agreed).sum())
    assert differs > 0
    label = np.asarray(nibabel.load(balls / "labelsTr/case_000.nii.gz").dataobj)
    assert min(_dice(_values(both / "codes.nii.gz"), label, value) for value in (1, 2)) > 0.85


def test_ensemble_of_the_same_run_twice_is_that_run(predict: Predict, trained: Path, scans: Path, masks: Path) -> None:
    twice = predict([trained, trained / "checkpoints/best.pt"], scans / "codes.nii.gz")
    assert (_values(twice / "codes.nii.gz") == _values(masks / "codes.nii.gz")).all()


def test_test_time_augmentation_averages_over_flips(
    program: Program, predict: Predict, trained: Path, scans: Path, masks: Path, balls: Path, tmp_path: Path
) -> None:
    averaged = predict([trained], scans / "codes.nii.gz", "--tta")
    ours, plain = _values(averaged / "codes.nii.gz"), _values(masks / "codes.nii.gz")
    label = np.asarray(nibabel.load(balls / "labelsTr/case_000.nii.gz").dataobj)
    assert min(_dice(ours, label, value) for value in (1, 2)) > 0.9
    assert 0 < (ours != plain).mean() < 0.02
    # A flipped volume has the flipped mask, because all flips are averaged.
    image = nibabel.load(scans / "codes.nii.gz")
    flipped = Image(np.asarray(image.dataobj)[::-1, :, ::-1].copy(), image.affine)
    nibabel.save(flipped, tmp_path / "flipped.nii.gz")
    mirrored = _values(predict([trained], tmp_path / "flipped.nii.gz", "--tta") / "flipped.nii.gz")[::-1, :, ::-1]
    assert (mirrored == ours).mean() > 0.999


def test_other_checkpoint_and_overlap(predict: Predict, trained: Path, scans: Path, masks: Path) -> None:
    sparse = predict([trained], scans / "codes.nii.gz", "--overlap", 0, "--checkpoint", "last", "--device", "cpu")
    agreement = (_values(sparse / "codes.nii.gz") == _values(masks / "codes.nii.gz")).mean()
    assert agreement > 0.97


# -- evaluation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["trained", "trained_resampled"])
def test_scores_are_those_of_the_predicted_masks(
    program: Program, predict: Predict, balls: Path, run: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(run)
    ended = program.warm(COMMANDS, "evaluate", folder).wait().expect(0)

    rows = _read_csv(folder / "evaluation/cases.csv")
    summary = json.loads((folder / "evaluation/summary.json").read_text())
    name = rows[0]["case"]
    assert [(row["case"], row["label"]) for row in rows] == [(name, "ball1"), (name, "ball2")]
    mask = _values(predict([folder], balls / f"imagesTr/{name}.nii.gz", "--checkpoint", "last") / f"{name}.nii.gz")
    _assert_scores(rows, mask, nibabel.load(balls / f"labelsTr/{name}.nii.gz"))
    assert summary["cases"] == 1
    assert summary["dice"] == pytest.approx(fmean(float(row["dice"]) for row in rows))
    assert summary["checkpoint"] == str(folder / "checkpoints/last.pt")  # best.pt was chosen on this case
    assert re.search(rf"\| ball1 +\| 1 +\| {float(rows[0]['dice']):.4f} ± 0\.0000 +\|", ended.out)
    picture = matplotlib.image.imread(folder / "evaluation/best_and_worst.png")
    assert min(picture.shape[:2]) > 200
    assert picture.std() > 0.05


def test_evaluation_equals_the_validation_without_resampling(program: Program, trained: Path) -> None:
    """Without resampling, the voxels of the files are those of the validation."""
    validations = records(trained, "val")
    best = max(validations, key=lambda record: record["dice"])
    for options, folder, expected in (
        ((), "evaluation", validations[-1]),
        (("--checkpoint", "best"), "evaluation_best", best),
    ):
        program.warm(COMMANDS, "evaluate", trained, *options).wait().expect(0)
        summary = json.loads((trained / folder / "summary.json").read_text())
        assert summary["dice"] == pytest.approx(expected["dice"], abs=2e-3)
        assert summary["step"] == expected["step"]


def test_evaluation_of_another_data_set(
    program: Program, predict: Predict, trained: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_dataset(tmp_path / "Task92_others", cases=3, classes=3, seed=7)
    program.warm(COMMANDS, "evaluate", trained, "--dataset", root).wait().expect(0)

    folder = trained / "evaluation_Task92_others"
    rows = _read_csv(folder / "cases.csv")
    assert len(rows) == 6
    made = predict([trained], root / "imagesTr")
    for name in ("case_000", "case_001", "case_002"):
        own = [row for row in rows if row["case"] == name]
        _assert_scores(own, _values(made / f"{name}.nii.gz"), nibabel.load(root / f"labelsTr/{name}.nii.gz"))
    summary = json.loads((folder / "summary.json").read_text())
    for label in ("ball1", "ball2"):
        dice = [float(row["dice"]) for row in rows if row["label"] == label]
        assert summary["classes"][label]["dice"]["mean"] == pytest.approx(fmean(dice))
        assert summary["classes"][label]["dice"]["std"] == pytest.approx(stdev(dice))
    assert summary["cases"] == 3
    assert (folder / "best_and_worst.png").stat().st_size > 10_000


def test_evaluation_after_the_data_set_has_moved(program: Program, train: Train, balls: Path, tmp_path: Path) -> None:
    """The new folder is given on the command line."""
    before, after = tmp_path / "before" / balls.name, tmp_path / "after"
    shutil.copytree(balls, before)
    run = tmp_path / "run"
    train(run, f"data.root={before}", f"data.prepared={tmp_path / 'prepared'}").expect(0)
    before.rename(after)

    ended: Ended = program.warm(COMMANDS, "evaluate", run).wait().expect(2)
    assert f"data.root={before}: does not exist" in ended.err
    program.warm(COMMANDS, "evaluate", run, f"data.root={after}").wait().expect(0)
    assert (run / "evaluation/cases.csv").exists()


@pytest.mark.long
def test_ensemble_of_slices_of_three_views(
    program: Program, predict: Predict, train: Train, balls: Path, trained: Path, tmp_path: Path
) -> None:
    patches = {"axial": [16, 16, 1], "coronal": [16, 1, 16], "sagittal": [2, 16, 16]}
    runs = [tmp_path / view for view in patches]
    for run, (view, patch) in zip(runs, patches.items(), strict=True):
        model = f"model={{name: unet, channels: [4, 8], dims: 2, view: {view}}}"
        train(
            run,
            model,
            f"data.patch={patch}",
            "train.global_batch=8",
            "train.micro_batch=8",
            "train.steps=60",
            "validate.every=60",
        ).expect(0)
    program.warm(COMMANDS, "evaluate", runs[0], "--with", *runs[1:]).wait().expect(0)

    rows = _read_csv(runs[0] / "evaluation_ensemble/cases.csv")
    name = rows[0]["case"]
    image = balls / f"imagesTr/{name}.nii.gz"
    masks = {
        count: _values(predict(runs[:count], image, "--checkpoint", "last") / f"{name}.nii.gz") for count in (1, 3)
    }
    _assert_scores(rows, masks[3], nibabel.load(balls / f"labelsTr/{name}.nii.gz"))
    assert (masks[1] != masks[3]).any()
    summary = json.loads((runs[0] / "evaluation_ensemble/summary.json").read_text())
    assert summary["averaged_with"] == [str(run / "checkpoints/last.pt") for run in runs[1:]]

    other_fold = tmp_path / "other_fold"
    train(other_fold, "data.fold=1", "train.steps=1").expect(0)
    ended = program.warm(COMMANDS, "evaluate", trained, "--with", other_fold).wait().expect(2)
    assert f"{other_fold}/checkpoints/last.pt: was trained on 1 of the 1 cases to be evaluated ({name})" in ended.err
    assert not (trained / "evaluation_ensemble").exists()


# -- helpers -------------------------------------------------------------------------------------------------


def _assert_scores(rows: list[dict[str, str]], mask: NDArray[Any], label: Image) -> None:
    truth = np.asarray(label.dataobj)
    spacing = np.linalg.norm(label.affine[:3, :3], axis=0).tolist()
    ours, theirs = (one_hot(torch.from_numpy(array.astype(np.int64))[None, None], 3) for array in (mask, truth))
    dice = compute_dice(ours, theirs, include_background=False)[0].tolist()
    distance = compute_hausdorff_distance(ours, theirs, percentile=95, spacing=spacing)[0].tolist()
    assert [float(row["dice"]) for row in rows] == pytest.approx(dice)
    assert [float(row["hd95_mm"]) for row in rows] == pytest.approx(distance, rel=1e-5)  # MONAI computes it in float32
    assert [int(row["voxels_predicted"]) for row in rows] == [int((mask == value).sum()) for value in (1, 2)]
    assert [int(row["voxels_true"]) for row in rows] == [int((truth == value).sum()) for value in (1, 2)]


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def _turned(degrees: float) -> NDArray[np.float64]:
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


def _reorient(image: Image, axes: str) -> Image:
    """Store a volume along other axes; its voxels keep their world coordinates."""
    transform = ornt_transform(io_orientation(image.affine), axcodes2ornt(axes))
    values = apply_orientation(np.asarray(image.dataobj), transform)
    return Image(np.ascontiguousarray(values), image.affine @ inv_ornt_aff(transform, image.shape))


def _save(image: Image, path: Path) -> None:
    nibabel.save(image, path)


def _case(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _values(path: Path) -> NDArray[np.uint8]:
    return np.asarray(nibabel.load(path).dataobj)


def _dice(mask: NDArray[Any], label: NDArray[Any], value: int) -> float:
    both = ((mask == value) & (label == value)).sum()
    return float(2 * both / ((mask == value).sum() + (label == value).sum()))
