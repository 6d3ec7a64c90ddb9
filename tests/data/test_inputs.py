"""The cases that an input of a prediction stands for: files, folders, folders of cases, data sets; and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import oblique, write_multiframe, write_series

from fusionseg.data.inputs.inputs import InputOptions, Inputs, find_inputs
from fusionseg.utils.errors import UserError

CT, MR = ("CT",), ("T1", "FLAIR")


def touch(*paths: Path) -> None:
    """Files that are only looked at by name."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def images(found: Inputs, root: Path) -> dict[str, list[str]]:
    return {case.name: [str(path.relative_to(root)) for path in case.images] for case in found.cases}


def said(path: Path, channels: Sequence[str] | None = None, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        find_inputs(path, channels, options=InputOptions(**options))
    return str(caught.value)


def test_a_folder_of_images(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{n}.nii.gz" for n in ("p_0000", "p_0001", "q_0000", "q_0001", "r", "._r")))
    touch(tmp_path / "s.nii", tmp_path / "notes.txt", tmp_path / "n_0007.nii", tmp_path / "old/x.nii")
    found = find_inputs(tmp_path)
    assert {case.name: len(case.images) for case in found.cases} == {"n_0007": 1, "p": 2, "q": 2, "r": 1, "s": 1}
    assert all(case.label is None for case in found.cases) and found.searched is None
    assert found.notes == (f"{tmp_path}: left out: 2 files or folders (notes.txt, old)",)
    assert len(find_inputs(tmp_path, CT).cases) == 7
    assert images(find_inputs(tmp_path / "r.nii.gz"), tmp_path) == {"r": ["r.nii.gz"]}
    assert images(find_inputs(tmp_path / "p_0000.nii.gz"), tmp_path) == {"p": ["p_0000.nii.gz"]}


def test_channels_by_name_in_a_folder_of_images(tmp_path: Path) -> None:
    """A channel is the last word of a name: t1ce is not T1."""
    touch(*(tmp_path / f"{n}.nii" for n in ("p-T1", "p-flair", "q_t1", "q_FLAIR", "r_t1ce")))
    assert images(find_inputs(tmp_path, MR), tmp_path) == {
        "p": ["p-T1.nii", "p-flair.nii"],
        "q": ["q_t1.nii", "q_FLAIR.nii"],
        "r_t1ce": ["r_t1ce.nii"],
    }
    touch(tmp_path / "q-t1.nii.gz")
    assert "case q has several files of T1 (" in said(tmp_path, MR)
    with_gd = ("T1", "T1 Gd", "T2")
    touch(*(tmp_path / f"gd/p_{n}.nii" for n in ("t1", "t1_gd")))
    assert "case p lacks the channel T2 (p_t1.nii, p_t1_gd.nii); each case needs one" in said(tmp_path / "gd", with_gd)


def test_a_folder_for_each_case(tmp_path: Path) -> None:
    touch(
        tmp_path / "p1/scan.nii.gz", tmp_path / "p1/report.pdf",  # the only image, whatever its name
        tmp_path / "p2/x_0000.nii", tmp_path / "p2/label.nii",  # nnU-Net's number
        tmp_path / "p3/CT.nii.gz", tmp_path / "p3/liver.nii.gz",  # the name of the channel
        tmp_path / "p4/day 1/a.nii", tmp_path / "p4/day 2/a.nii",
        tmp_path / "docs/readme.md", tmp_path / ".git/a.nii", tmp_path / "cases.csv",
    )  # fmt: skip
    found = find_inputs(tmp_path, CT)
    assert images(found, tmp_path) == {
        "p1": ["p1/scan.nii.gz"],
        "p2": ["p2/x_0000.nii"],
        "p3": ["p3/CT.nii.gz"],
        "p4_day 1": ["p4/day 1/a.nii"],
        "p4_day 2": ["p4/day 2/a.nii"],
    }
    (note,) = found.notes
    assert note.startswith(f"{tmp_path}: left out: 3 files or folders (p1/report.pdf, p2/label.nii, p3/liver.nii.gz); ")
    assert note.endswith("1 folder without an image (docs)") and found.searched == tmp_path
    # A name does not depend on the other cases.
    for other in ("p1", "p2", "p3", "p4/day 2", "docs"):
        for file in (tmp_path / other).iterdir():
            file.unlink()
    assert images(find_inputs(tmp_path, CT), tmp_path) == {"p4_day 1": ["p4/day 1/a.nii"]}


def test_channels_in_the_folder_of_a_case(tmp_path: Path) -> None:
    touch(*(tmp_path / f"a/{n}.nii.gz" for n in ("flair", "t1", "seg")))
    touch(*(tmp_path / f"b/{n}.nii.gz" for n in ("b_0000", "b_0001")))
    touch(tmp_path / "c/all.nii.gz", tmp_path / "d/T1/x.nii", tmp_path / "d/FLAIR/x.nii", tmp_path / "d/loc/x.nii")
    found = images(find_inputs(tmp_path, MR), tmp_path)
    assert found == {
        "a": ["a/t1.nii.gz", "a/flair.nii.gz"],
        "b": ["b/b_0000.nii.gz", "b/b_0001.nii.gz"],
        "c": ["c/all.nii.gz"],
        "d": ["d/T1/x.nii", "d/FLAIR/x.nii"],
    }
    touch(tmp_path / "a/a_0000.nii.gz", tmp_path / "a/a_0001.nii.gz")
    assert "holds several images (a_0000.nii.gz + a_0001.nii.gz or t1.nii.gz + flair.nii.gz)" in said(tmp_path, MR)
    (tmp_path / "a/a_0001.nii.gz").unlink()
    (tmp_path / "b/b_0001.nii.gz").rename(tmp_path / "b/b_0002.nii.gz")
    problems = said(tmp_path, ("T1", "T2"))
    assert f"{tmp_path}/a: holds 3 images (" in problems and f"{tmp_path}/b: holds 2 images (" in problems
    assert "the network reads the channels T1, T2; name one file for each channel (t1.nii.gz, t2.nii.gz)" in problems


def test_several_images_in_the_folder_of_a_case_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "site/p1.nii", tmp_path / "site/p2.nii", tmp_path / "other/p3.nii")
    text = said(tmp_path, CT)
    assert f"{tmp_path}/site: holds 2 images (p1.nii, p2.nii), and the network reads one channel, CT" in text
    assert "if each file is a case, give this folder itself" in text and "other" not in text
    assert len(find_inputs(tmp_path / "site", CT).cases) == 2


def test_links_in_a_circle_and_names_that_meet(tmp_path: Path) -> None:
    touch(tmp_path / "a/b_c/x.nii")
    (tmp_path / "a/up").symlink_to(tmp_path)
    assert images(find_inputs(tmp_path, CT), tmp_path) == {"a_b_c": ["a/b_c/x.nii"]}
    touch(tmp_path / "a_b/c/y.nii")
    assert "2 inputs are named a_b_c (" in said(tmp_path, CT)


def test_impossible_inputs(tmp_path: Path) -> None:
    assert "no such file or folder" in said(tmp_path / "nowhere")
    assert "holds no image, and no folder with one (expected .nii.gz" in said(tmp_path)
    touch(tmp_path / "imagesTs/a.nii.gz", tmp_path / "x.png")
    assert f"did you mean {tmp_path / 'imagesTs'}?" in said(tmp_path)
    assert "not an image file (" in said(tmp_path / "x.png")
    gap = tmp_path / "gap"
    touch(gap / "p_0000.nii", gap / "p_0002.nii", gap / "r.nii", gap / "r.nii.gz")
    assert "channel p_0001 is missing" in said(gap) and "2 inputs are named r" in said(gap)
    assert "--cases, --base-dir: " in said(gap, cases="all", base_dir="x")


def listed(folder: Path, **content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(content))
    return folder / "cases.json"


def test_a_datalist(tmp_path: Path) -> None:
    touch(*(tmp_path / f"scans/{n}_{c}.nii" for n in "abc" for c in ("f", "t")))
    entries = [{"image": [f"{n}_f.nii", f"{n}_t.nii"], "label": f"{n}_l.nii"} for n in "ab"]
    test = [{"image": ["c_f.nii", "c_t.nii"]}]
    source = listed(tmp_path / "lists", training=entries, test=test, modality=["flair", "t1"], base_dir="../scans")
    found = find_inputs(source, MR)
    assert images(found, tmp_path) == {"c": ["scans/c_f.nii", "scans/c_t.nii"]}
    assert found.channels == (1, 0)  # the network's T1 is the second file
    assert found.source == f"{source}, its test cases; --cases all takes the other 2 too"
    assert find_inputs(source.parent, MR) == found
    # The labels of the training cases are missing, and are not needed.
    every = find_inputs(source, MR, options=InputOptions("all"))
    assert [case.name for case in every.cases] == ["a", "b", "c"] and every.cases[0].label is None
    assert len(find_inputs(source, MR, options=InputOptions("training")).cases) == 2
    assert "has the channels ['flair', 't1'], and the run was trained on ['CT', 'PET']" in said(source, ("CT", "PET"))
    source = listed(tmp_path / "lists", training=entries, modality=["flair", "t1"])
    assert "none of its 4 images is in" in said(source, MR)
    found = find_inputs(source, MR, options=InputOptions(base_dir=str(tmp_path / "scans")))
    assert len(found.cases) == 2 and found.source.endswith(", all its cases")
    options = {"cases": "test", "base_dir": str(tmp_path / "scans")}
    assert "lists no such cases; expected training (2), all (2)" in said(source, MR, **options)


def test_a_list_beside_images_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii", tmp_path / "b.nii")
    (tmp_path / "a.json").write_text('{"test": ["a.nii"]}')  # belongs to a.nii, as in BIDS
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0}, "file_ending": ".nii"}')  # of predictions
    assert len(find_inputs(tmp_path, CT).cases) == 2
    source = listed(tmp_path, test=["a.nii"])
    assert f"holds 2 images and the list cases.json; it is not clear which is the input: give {source}" in said(
        tmp_path
    )
    assert len(find_inputs(source, ("image",)).cases) == 1


def test_the_folder_of_a_data_set(balls: Path, tmp_path: Path) -> None:
    assert [case.name for case in find_inputs(balls, None).cases][:2] == ["case_000", "case_001"]
    source = listed(tmp_path, test=["a.nii"])
    (tmp_path / "b.json").write_text(source.read_text())
    assert "holds several lists of cases (b.json, cases.json); give the file of one" in said(tmp_path)


def series(folder: Path, slices: int = 3, **options: Any) -> None:
    write_series(folder, np.zeros((4, 5, slices), np.int16), **options)


@pytest.mark.parametrize("suffix", ["", ".dcm"])
def test_dicom_as_hospitals_export_it(tmp_path: Path, suffix: str) -> None:
    """PATIENT/STUDY/SERIES, with scouts, segmentations and reports beside the volumes, and files of viewers."""

    def scout(one: Any, _: int) -> None:
        one.ImageType = ["ORIGINAL", "LOCALIZER"]

    export, named = tmp_path / "export", {"name": lambda index: f"IM{index}{suffix}"}
    for place in ("1001/S1/CT", "1001/S1/PET", "1002/S9/3"):
        series(export / place, **named)
    series(
        export / "1001/S1/scout", 1, **named, change=lambda one, _: setattr(one, "ImageType", ["ORIGINAL", "LOCALIZER"])
    )

    def report(one: Any, _: int) -> None:
        one.Modality = "SR"
        del one.Rows, one.PixelData

    series(export / "1002/S9/sr", 1, **named, change=report)
    touch(export / "DICOMDIR", export / "1002/viewer/run.exe")
    found = find_inputs(export, CT)
    assert images(found, export) == {
        "1001_S1_CT": ["1001/S1/CT"], "1001_S1_PET": ["1001/S1/PET"], "1002_S9_3": ["1002/S9/3"],
    }  # fmt: skip
    assert found.notes == (
        f"{export}: left out: 1 folder without an image (1002/viewer); 2 DICOM folders without a volume"
        " (1001/S1/scout: scout, 1002/S9/sr: SR)",
    )
    # With two channels, the folders CT and PET are one case. The other study has no such folders.
    both = find_inputs(export, ("PET", "CT"))
    assert images(both, export)["1001_S1"] == ["1001/S1/PET", "1001/S1/CT"]
    one = find_inputs(export / "1001/S1/CT", CT)
    assert images(one, export) == {"CT": ["1001/S1/CT"]} and one.source.endswith("CT, a DICOM series")


def test_several_multi_frame_files_without_a_suffix(tmp_path: Path) -> None:
    for name in ("IM1", "IM2"):
        write_multiframe(tmp_path / name, np.zeros((4, 5, 3), np.int16), oblique())
    assert "several multi-frame files; give each a folder of its own, or the suffix .dcm" in said(tmp_path, CT)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_suffix(".dcm"))
    assert [case.name for case in find_inputs(tmp_path, CT).cases] == ["IM1", "IM2"]


def test_a_file_among_the_slices(tmp_path: Path) -> None:
    series(tmp_path / "s")
    first = next((tmp_path / "s").iterdir())
    assert "not an image file (" in said(first) and f"give their folder, {tmp_path / 's'}" in said(first)
    touch(tmp_path / "s/scan.nii.gz")
    assert "holds a DICOM series and other images (scan.nii.gz)" in said(tmp_path / "s", CT)
    assert "holds a DICOM series and other images (scan.nii.gz)" in said(tmp_path, CT)


def test_a_list_of_dicom_series(tmp_path: Path) -> None:
    for name in ("p1/ct", "p2/ct"):
        series(tmp_path / name)
    source = listed(tmp_path, test=["p1/ct", "p2/ct"])
    assert images(find_inputs(source, CT), tmp_path) == {"p1_ct": ["p1/ct"], "p2_ct": ["p2/ct"]}
    source = listed(tmp_path, test=["p1/ct", "p3/ct"])
    assert f"{tmp_path}/p3/ct: file missing, case p3_ct needs it" in said(source, CT)


def test_labels_beside_the_images_are_no_inputs(tmp_path: Path) -> None:
    touch(tmp_path / "p1/liver_mask.nii.gz", tmp_path / "p1/ct/a.nii.gz", tmp_path / "p1/segmentations/liver.nii.gz")
    touch(tmp_path / "p2/a.nii.gz", tmp_path / "p2/a_seg.nii.gz")
    assert images(find_inputs(tmp_path, CT), tmp_path) == {"p1_ct": ["p1/ct/a.nii.gz"], "p2": ["p2/a.nii.gz"]}
    assert images(find_inputs(tmp_path / "p1", CT), tmp_path) == {"ct": ["p1/ct/a.nii.gz"]}
    found = find_inputs(tmp_path / "p2", CT)
    assert images(found, tmp_path) == {"a": ["p2/a.nii.gz"]} and "left out: 1 file or folder (a_seg" in found.notes[0]
    touch(*(tmp_path / f"site/{n}.nii" for n in ("label_03", "mask.study", "b", "b-label_seg", "gt")))
    assert list(images(find_inputs(tmp_path / "site", CT), tmp_path)) == ["b", "label_03", "mask.study"]
    shutil.rmtree(tmp_path / "site")
    touch(*(tmp_path / f"brats/p_{n}.nii" for n in ("t1", "flair", "seg")), tmp_path / "brats/q_0000.nii")
    touch(tmp_path / "brats/q_0001.nii", tmp_path / "brats/q_seg.nii")
    assert list(images(find_inputs(tmp_path / "brats", MR), tmp_path)) == ["p", "q"]
    shutil.rmtree(tmp_path / "brats")
    touch(tmp_path / "p3/seg.1.nii.gz", tmp_path / "p3/seg.2.nii.gz")  # nothing else is there
    assert len(find_inputs(tmp_path / "p3", CT).cases) == 2
    touch(tmp_path / "p4/x_mask.nii.gz")
    (tmp_path / "p3/seg.2.nii.gz").unlink()
    assert images(find_inputs(tmp_path, CT), tmp_path)["p4"] == ["p4/x_mask.nii.gz"]
