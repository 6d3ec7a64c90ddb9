"""Synthetic chests: the same bytes for the same request, anatomy that holds, and files that appear whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from fusionseg import cli
from fusionseg.data.synthetic import chest as synth_case
from fusionseg.data.synthetic import dataset as synth
from fusionseg.data.synthetic.forms import FORMS
from fusionseg.data.synthetic.shapes import Segment, draw_tubes
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import whole_file

SIZE = 48  # the smallest; seconds matter here
LABEL_SUM, IMAGE_MEAN = 508, -579.2921


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def enumerate_text(names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(str(value), name) for value, name in enumerate(names)]


def leave_half(path: Path) -> None:
    """Leave behind what a process leaves that is killed while it writes `path`."""
    with suppress(InterruptedError), whole_file(path) as temporary:
        raise InterruptedError
    temporary.write_bytes(b"half")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "Task99"
    synth.write_dataset(out, cases=3, size=SIZE, seed=7, workers=1)
    return out


@pytest.fixture(scope="module")
def parts() -> synth_case._Parts:
    return synth_case._draw_parts(96, np.random.default_rng(0))


@pytest.fixture(scope="module")
def case_96() -> synth_case.SynthCase:
    return synth_case.make_case(96, seed=0, index=0)


def test_same_request_writes_the_same_bytes_in_any_number_of_processes(dataset: Path, tmp_path: Path) -> None:
    synth.write_dataset(tmp_path / "again", cases=3, size=SIZE, seed=7, workers=2)
    assert digests(tmp_path / "again") == digests(dataset)


def test_a_case_does_not_depend_on_how_many_are_asked_for(dataset: Path, tmp_path: Path) -> None:
    synth.write_dataset(tmp_path / "one", cases=1, size=SIZE, seed=7, workers=1)
    for name in ("imagesTr/synth_000.nii.gz", "labelsTr/synth_000.nii.gz"):
        assert (tmp_path / "one" / name).read_bytes() == (dataset / name).read_bytes()


def test_seeds_and_cases_differ() -> None:
    first, other_seed, other_case = (synth_case.make_case(SIZE, *key) for key in ((0, 0), (1, 0), (0, 3)))
    assert not np.array_equal(first.label, other_seed.label)
    assert not np.array_equal(first.label, other_case.label)
    assert not np.allclose(np.abs(first.affine[:3, :3]).max(), np.abs(other_case.affine[:3, :3]).max())


def test_layout_reads_as_msd_with_equal_affines(dataset: Path) -> None:
    described = json.loads((dataset / "dataset.json").read_text())
    assert described["labels"] == {"0": "background", "1": "pulmonary_artery"}
    assert described["numTraining"] == len(described["training"]) == 3
    orientations = set()
    for entry in described["training"]:
        image, label = (nib.load(dataset / entry[key]) for key in ("image", "label"))
        assert image.shape == label.shape == (SIZE,) * 3
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        assert np.array_equal(image.affine, label.affine)
        assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-3)
        assert np.allclose(image.header.get_zooms(), 340 / SIZE, rtol=0.05)
        assert set(np.unique(np.asarray(label.dataobj))) == {0, 1}
        orientations.add(nib.aff2axcodes(image.affine))
    assert len(orientations) == 3


def test_array_axes_follow_the_affine() -> None:
    """In world coordinates every case lies the same way: lungs above abdomen, spine at the back."""
    for index in range(3):
        case = synth_case.make_case(SIZE, 0, index)
        image = nib.as_closest_canonical(nib.Nifti1Image(case.image, case.affine)).get_fdata()
        middle = slice(SIZE // 3, 2 * SIZE // 3)
        bone = image[SIZE // 2 - 2 : SIZE // 2 + 2, :, middle] > 380
        assert bone[:, : SIZE // 2].sum() > bone[:, SIZE // 2 :].sum()
        axial_mean = image[middle, middle].mean(axis=(0, 1))
        assert axial_mean[: SIZE // 4].mean() > axial_mean[SIZE // 2 : -SIZE // 4].mean()


@pytest.mark.parametrize("tree", ["arteries", "veins", "airways"])
def test_murrays_law_holds_at_every_bifurcation(parts: synth_case._Parts, tree: str) -> None:
    segments = getattr(parts, tree)
    children: dict[int, list[Segment]] = {}
    for segment in segments:
        if segment.parent >= 0:
            children.setdefault(segment.parent, []).append(segment)
    assert len(children) >= 5
    for parent, pair in children.items():
        assert len(pair) == 2
        assert sum(child.start_radius**3 for child in pair) == pytest.approx(segments[parent].end_radius ** 3)
        assert all(np.array_equal(child.start, segments[parent].end) for child in pair)
    assert all(0 < segment.end_radius <= segment.start_radius for segment in segments)


def test_arteries_stay_in_lungs_and_mediastinum(parts: synth_case._Parts) -> None:
    for segment in parts.arteries[1:]:  # the trunk begins in the heart
        assert parts.chest.passage(*segment.end[:, None]) > 0
    ends = np.stack([segment.end for segment in parts.arteries[3:]])
    assert (parts.chest.lungs(*ends.T) > 0).all()
    assert (ends[:, 0] > 30).any() and (ends[:, 0] < -30).any()  # both lungs
    assert np.ptp(ends[:, 2]) > 100  # mm, from base to apex


def test_thin_branches_are_drawn_without_gaps(case_96: synth_case.SynthCase) -> None:
    components, _ = ndimage.label(case_96.label, np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())[1:]
    assert sizes.max() > 0.98 * sizes.sum()


def test_label_is_neither_microscopic_nor_plain_thresholding(case_96: synth_case.SynthCase) -> None:
    assert 0.003 < case_96.label.mean() < 0.03
    bright = case_96.image > 200
    dice = 2 * (bright & (case_96.label == 1)).sum() / (bright.sum() + case_96.label.sum())
    assert dice < 0.5


def test_arteries_are_brighter_than_veins() -> None:
    seeds = np.random.SeedSequence([0, 0]).spawn(2)
    parts = synth_case._draw_parts(96, np.random.default_rng(seeds[0]))
    image = synth_case._render(parts, np.random.default_rng(seeds[1]))
    veins = draw_tubes(parts.veins, parts.axes, parts.voxel)
    in_artery, in_vein = parts.artery_coverage == 1, (veins == 1) & (parts.artery_coverage == 0)
    assert in_vein.sum() > 300
    assert image[in_artery].mean() > image[in_vein].mean() + 80
    outside = (parts.artery_coverage == 0) & (veins == 0)
    assert np.percentile(image[outside], 1) < -980 and image.max() > 400  # air and bone


def test_interrupted_writing_leaves_whole_files_and_is_completed(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    replace, calls = os.replace, []

    def replace_until_full(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 5:  # the marker, two files of case 0, the label of case 1, then its image
            raise OSError("No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_until_full)
        with pytest.raises(OSError, match="No space left"):
            synth.write_dataset(out, cases=3, size=SIZE, seed=7, workers=1)
    written = {name for name in digests(out) if name.endswith(".nii.gz")}
    assert written == {"imagesTr/synth_000.nii.gz", "labelsTr/synth_000.nii.gz", "labelsTr/synth_001.nii.gz"}
    assert not list(out.rglob(".partial-*")) and not (out / "dataset.json").exists()

    # A process that is killed cannot tidy up: the next call does.
    leave_half(out / "imagesTr" / "synth_001.nii.gz")
    kept = (out / "imagesTr" / "synth_000.nii.gz").stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    synth.write_dataset(out, cases=3, size=SIZE, seed=7, workers=1, progress=lambda *step: seen.append(step))
    assert (out / "imagesTr" / "synth_000.nii.gz").stat().st_mtime_ns == kept
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert digests(out) == digests(dataset)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_is_told_with_what_was_done(
    dataset: Path, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    size = sum(path.stat().st_size for path in dataset.glob("*Tr/synth_000*"))
    disk = small_disk(f"{size * 3 // 2 // 1024}k")
    command = ["synth", str(disk / "d"), "--cases", "3", "--size", str(SIZE), "--seed", "7", "--workers", str(workers)]
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert f"error: {disk}/d: cannot be written: No space left on device" in said
    assert "of 3 cases are written, and the same command continues from there" in said and "Traceback" not in said
    assert not list(disk.rglob(".partial-*")) and not (disk / "d/dataset.json").exists()


def test_a_process_killed_at_its_very_first_file_does_not_block_the_folder(tmp_path: Path) -> None:
    leave_half(tmp_path / synth._MARKER)
    synth.write_dataset(tmp_path, cases=1, size=SIZE, seed=7, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset.json", "imagesTr", "labelsTr"]


def test_a_finished_data_set_is_left_alone(dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*.*")}
    assert synth.write_dataset(dataset, cases=3, size=SIZE, seed=7) == dataset / "dataset.json"
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*.*")} == before


def test_impossible_requests_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        synth.write_dataset(tmp_path / "out", cases=0, size=32, seed=-1, workers=0)
    message = str(caught.value)
    for text in ("size is 32; give at least 48", "cases is 0", "seed is -1", "workers is 0"):
        assert text in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["organs", "regions"])
def test_every_class_is_in_every_case_of_the_smallest_size(form: str) -> None:
    drawn = FORMS[form]
    for index in range(12):
        case = drawn.make_case(drawn.least_size, 0, index)
        assert set(np.unique(case.label)) == set(range(len(drawn.labels)))


def test_organs_have_thick_slices_and_lie_on_their_side() -> None:
    drawn, thickness = FORMS["organs"], []
    for index in range(3):
        case = drawn.make_case(32, 1, index)
        edges = np.linalg.norm(case.affine[:3, :3], axis=0)
        thickness.append(edges[2] / edges[0])
        position = {
            name: (case.affine @ [*np.argwhere(case.label == value).mean(axis=0), 1])[:3]
            for value, name in enumerate(drawn.labels)
        }
        assert position["liver"][0] > position["pancreas"][0] > position["spleen"][0]  # x points to the right
        assert position["right_kidney"][0] > position["left_kidney"][0]
        inside = case.image[case.label == drawn.labels.index("spleen")]
        assert 60 < np.median(inside) < 160 and case.image.min() < -950
    assert len({round(ratio, 3) for ratio in thickness}) == 3 and min(thickness) > 1.3


def test_regions_are_nested_and_each_shows_in_its_sequence() -> None:
    drawn = FORMS["regions"]
    for index in range(3):
        case = drawn.make_case(40, 2, index)
        image = dict(zip(drawn.channels, np.moveaxis(case.image.astype(float), -1, 0), strict=True))
        edema, dead, enhancing = (case.label == value for value in (1, 2, 3))
        # The tumour core touches nothing but the oedema, and the dead part nothing but the enhancing rim.
        surface = ndimage.binary_dilation(dead) & ~dead
        assert (enhancing[surface].mean()) > 0.9
        surface = ndimage.binary_dilation(dead | enhancing) & ~(dead | enhancing)
        assert edema[surface].mean() > 0.9
        healthy = (image["T1w"] > 0) & (case.label == 0)
        assert image["FLAIR"][edema].mean() > 1.3 * image["FLAIR"][healthy].mean()
        assert image["t1gd"][enhancing].mean() > 1.5 * image["t1gd"][dead | edema].mean()
        assert (case.image.reshape(-1, 4).max(axis=1) == 0).mean() > 0.3  # the air around the brain


def test_a_form_is_written_with_its_channels_and_classes(tmp_path: Path) -> None:
    command = ["synth", str(tmp_path / "d"), "--form", "regions", "--cases", "1", "--size", "24", "--workers", "1"]
    assert cli.main(command) == 0
    described = json.loads((tmp_path / "d/dataset.json").read_text())
    assert list(described["modality"].values()) == ["FLAIR", "T1w", "t1gd", "T2w"]
    assert described["labels"] == dict(enumerate_text(FORMS["regions"].labels))
    image, label = (nib.load(tmp_path / f"d/{part}Tr/synth_000.nii.gz") for part in ("images", "labels"))
    assert (*label.shape, 4) == image.shape and np.array_equal(image.affine, label.affine)
    before = digests(tmp_path)
    with pytest.raises(UserError, match=r"form regions \(asked for: organs\)"):
        synth.write_dataset(tmp_path / "d", form="organs", cases=1, size=24, workers=1)
    with pytest.raises(UserError, match=r"(?s)there is no form 'organ'; did you mean organs.*cases is 0"):
        synth.write_dataset(tmp_path / "e", form="organ", cases=0, size=24, workers=1)
    assert digests(tmp_path) == before


def test_vessels_are_those_of_earlier_versions() -> None:
    case = synth_case.make_case(SIZE, 7, 2)
    assert case.label.sum() == LABEL_SUM
    assert case.image.mean(dtype=float) == pytest.approx(IMAGE_MEAN, abs=1e-3)


def test_other_content_is_never_mixed_with(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    before = digests(dataset)
    for folder, request, expected in (
        (tmp_path, {}, "did not write"),
        (tmp_path / "thesis.txt", {}, "is a file"),
        (dataset, {"cases": 3, "size": SIZE, "seed": 8}, r"seed 7 \(asked for: 8\)"),
    ):
        with pytest.raises(UserError, match=expected) as caught:
            synth.write_dataset(folder, workers=1, **request)  # type: ignore[arg-type]
        assert str(folder) in str(caught.value) and "choose another folder or delete it" in str(caught.value)
    assert digests(dataset) == before
