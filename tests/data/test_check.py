"""Every kind of damage, done to real files, is found and named; nothing stops the report."""

from __future__ import annotations

import gzip
import json
import os
import signal
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from faults.catalogue import assert_seen

from fusionseg.data.checks.case_check import CaseReport
from fusionseg.data.checks.dataset_check import CheckReport, _check_cases, check_dataset
from fusionseg.data.formats.dataset import Case, Dataset, open_dataset

SHAPE = (12, 11, 10)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def save(path: Path, array: Any, affine: Any = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)  # type: ignore[no-untyped-call]
    return path


def image(seed: int, shape: tuple[int, ...] = SHAPE) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def label(shape: tuple[int, ...] = SHAPE) -> Any:
    mask = np.zeros(shape, np.uint8)
    mask[2:5, 2:5, 2:5], mask[6:8, 6:8, 6:8] = 1, 2
    return mask


class Toy:
    """A clean MSD data set on disk whose files the tests then damage; case 0 is the damaged one."""

    def __init__(self, root: Path, count: int = 3, channels: int = 1) -> None:
        self.root, self.channels = root, channels
        self.images = [tuple(root / f"imagesTr/c{i}_m{c}.nii.gz" for c in range(channels)) for i in range(count)]
        self.labels = [root / f"labelsTr/c{i}.nii.gz" for i in range(count)]
        for i, files in enumerate(self.images):
            for c, file in enumerate(files):
                save(file, image(10 * i + c))
            save(self.labels[i], label())

    def open(self, **options: Any) -> Dataset:
        training = [
            {"image": [str(f) for f in files], "label": str(mask)}
            for files, mask in zip(self.images, self.labels, strict=True)
        ]
        content = {
            "name": "toy",
            "modality": {str(c): f"M{c}" for c in range(self.channels)},
            "labels": {"0": "background", "1": "artery", "2": "vein"},
            "training": training,
            **options,
        }
        (self.root / "dataset.json").write_text(json.dumps(content))
        return open_dataset(self.root, require_files=False)

    def check(self, **options: Any) -> CheckReport:
        return check_dataset(self.open(), workers=1, **options)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def found(report: CheckReport) -> list[tuple[str, str]]:
    return [(p.severity, p.code) for p in report.problems]


def edit(path: Path, change: Callable[[bytearray], Any]) -> None:
    """Change the uncompressed bytes of a file."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    change(content)
    path.write_bytes(gzip.compress(bytes(content)))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x01
    path.write_bytes(content)


def shifted(mm: float) -> Any:
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


def extended(content: bytearray) -> None:
    content += b"garbage"


def with_pixdim(content: bytearray, axis: int, value: float) -> None:
    struct.pack_into("<f", content, 76 + 4 * axis, value)


def with_impossible_qform(content: bytearray) -> None:
    with_pixdim(content, 0, 7.0)  # qfac, which is 1 or -1
    struct.pack_into("<h", content, 252, 1)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def with_spot(array: Any, value: float) -> Any:
    array[0, 0, :2] = value
    return array


def test_a_clean_data_set_has_no_problem(toy: Toy) -> None:
    calls: list[tuple[int, int]] = []
    report = toy.check(patch=(8, 8, 8), progress=lambda done, total: calls.append((done, total)))
    assert report.problems == () and (report.dataset, report.cases) == ("toy", 3)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    summary = report.summary
    assert summary["cases"] == {"training": 3, "labelled": 3, "testing": 0}
    assert summary["shape"]["median"] == list(SHAPE) and summary["spacing_mm"]["max"] == [1, 1, 2]
    assert summary["orientations"] == {"RAS": 3} and summary["image_dtypes"] == {"float32": 3}
    assert summary["labels"][2] == {"value": 2, "name": "vein", "voxels": 3 * 8, "cases": 3}
    levels = summary["intensity"][0]
    assert levels["min"] < levels["p0.5"] < levels["p50"] < levels["p99.5"] < levels["max"]
    assert json.loads(json.dumps(report.to_json(), allow_nan=False)) == report.to_json()
    assert "toy: 3 cases, 0 errors, 0 warnings" in report.to_text()


def test_further_channels_4d_images_and_formats_are_clean(tmp_path: Path) -> None:
    assert Toy(tmp_path / "files", channels=2).check().problems == ()
    single = Toy(tmp_path / "4d", channels=2)
    for i, files in enumerate(single.images):
        save(files[0], image(i, (*SHAPE, 2)))
        files[1].unlink()
    single.images = [files[:1] for files in single.images]
    report = single.check()
    assert report.problems == () and [e["channel"] for e in report.summary["intensity"]] == ["M0", "M1"]
    plain = Toy(tmp_path / "plain")
    plain.images[0][0].unlink()
    plain.images[0] = (save(tmp_path / "plain/c.nii", image(5)),)
    scaled = nibabel.Nifti1Image(image(6).astype(np.float64), AFFINE)
    scaled.header.set_data_dtype(np.int16)
    nibabel.save(scaled, plain.images[1][0])
    nibabel.save(nibabel.Nifti2Image(image(7), AFFINE), plain.images[2][0])
    assert plain.check().problems == ()


FILE_DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "file deleted": ("missing", Path.unlink),
    "folder in its place": ("unreadable", replace_by_folder),
    "empty file": ("truncated", lambda p: p.write_bytes(b"")),
    "gzip cut": ("truncated", lambda p: p.write_bytes(p.read_bytes()[:-2000])),
    "gzip cut in its trailer": ("truncated", lambda p: p.write_bytes(p.read_bytes()[:-3])),
    "gzip cut in its header": ("truncated", lambda p: p.write_bytes(p.read_bytes()[:5])),
    "bit flipped in the stream": ("corrupt", lambda p: flip(p, p.stat().st_size // 2)),
    "bit flipped in the checksum": ("corrupt", lambda p: flip(p, -8)),
    "bytes after the gzip stream": ("trailing-data", lambda p: p.write_bytes(p.read_bytes() + b"garbage")),
    "not gzip": ("corrupt", lambda p: p.write_bytes(gzip.decompress(p.read_bytes()))),
    "fewer voxels than it says": ("truncated", lambda p: edit(p, lambda c: c.__delitem__(slice(-8, None)))),
    "more voxels than it says": ("trailing-data", lambda p: edit(p, extended)),
    "header cut": ("truncated", lambda p: edit(p, lambda c: c.__delitem__(slice(200, None)))),
    "not NIfTI": ("header", lambda p: p.write_bytes(gzip.compress(b"PK\x03\x04 something else"))),
    "pair": ("header", lambda p: edit(p, lambda c: c.__setitem__(slice(344, 348), b"ni1\0"))),
    "unknown data type": ("header", lambda p: edit(p, lambda c: struct.pack_into("<h", c, 70, 999))),
    "complex": ("header", lambda p: save(p, image(0).astype(np.complex64))),
    "negative size": ("header", lambda p: edit(p, lambda c: struct.pack_into("<h", c, 42, -4))),
    "data inside the header": ("header", lambda p: edit(p, lambda c: struct.pack_into("<f", c, 108, 0.0))),
}


@pytest.mark.parametrize("damage", FILE_DAMAGE)
def test_damaged_files(toy: Toy, damage: str) -> None:
    code, do = FILE_DAMAGE[damage]
    do(toy.images[0][0])
    report = toy.check()
    assert found(report) == [("error", code)], report.to_text()
    problem = report.problems[0]
    assert problem.case == "c0_m0" and problem.file == str(toy.images[0][0]) and problem.remedy
    assert report.summary["labels"][1]["cases"] == 3  # the rest of the case is still read


def test_a_compressed_file_named_nii(toy: Toy) -> None:
    toy.images[0] = (toy.images[0][0].rename(toy.root / "c.nii"),)
    assert found(toy.check()) == [("error", "header")]


def test_zero_padding_after_a_gzip_stream_is_no_damage(toy: Toy) -> None:
    path = toy.images[0][0]
    path.write_bytes(path.read_bytes() + bytes(512))
    assert toy.check().problems == ()


IMAGE_ERRORS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "NaN": ("non-finite", lambda p: save(p, with_spot(image(0), np.nan))),
    "infinity": ("non-finite", lambda p: save(p, with_spot(image(0), np.inf))),
    "constant": ("constant", lambda p: save(p, np.full(SHAPE, 7, np.int16))),
    "2D": ("dimensions", lambda p: save(p, image(0, (12, 11)))),
    "5D": ("dimensions", lambda p: save(p, image(0, (12, 11, 10, 1, 3)))),
    "4D for one channel": ("channels", lambda p: save(p, image(0, (*SHAPE, 2)))),
    "singular affine": ("affine", lambda p: edit(p, lambda c: struct.pack_into("<f", c, 300, 0.0))),
    "NaN in the affine": ("affine", lambda p: edit(p, lambda c: struct.pack_into("<f", c, 280, np.nan))),
    "zero spacing": ("spacing", lambda p: edit(p, lambda c: with_pixdim(c, 2, 0.0))),
}


@pytest.mark.parametrize("damage", IMAGE_ERRORS)
def test_wrong_images(toy: Toy, damage: str) -> None:
    code, do = IMAGE_ERRORS[damage]
    do(toy.images[0][0])
    report = toy.check()
    assert found(report) == [("error", code)], report.to_text()
    if damage == "NaN":
        assert "2 NaN and 0 infinite voxels of 1320" in report.problems[0].message
    json.dumps(report.to_json(), allow_nan=False)


LABEL_PROBLEMS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "shape": ("error", "label-shape", lambda p: save(p, label((12, 11, 9)))),
    "affine": ("error", "label-affine", lambda p: save(p, label(), shifted(0.5))),
    "affine, slightly": ("warning", "label-affine", lambda p: save(p, label(), shifted(0.005))),
    "fractions": ("error", "label-fraction", lambda p: save(p, label().astype(np.float32) * 0.999)),
    "NaN": ("error", "label-fraction", lambda p: save(p, with_spot(label().astype(np.float32), np.nan))),
    "unknown value": ("error", "label-value", lambda p: save(p, with_spot(label(), 9))),
    "negative value": ("error", "label-value", lambda p: save(p, with_spot(label().astype(np.int16), -1))),
    "4D": ("error", "dimensions", lambda p: save(p, label()[..., None].repeat(2, -1))),
    "float": ("warning", "label-float", lambda p: save(p, label().astype(np.float32))),
    "empty": ("warning", "empty-foreground", lambda p: save(p, np.zeros(SHAPE, np.uint8))),
    "missing": ("error", "missing", Path.unlink),
}


@pytest.mark.parametrize("damage", LABEL_PROBLEMS)
def test_wrong_labels(toy: Toy, damage: str) -> None:
    severity, code, do = LABEL_PROBLEMS[damage]
    do(toy.labels[0])
    report = toy.check()
    assert found(report) == [(severity, code)], report.to_text()
    assert report.problems[0].file == str(toy.labels[0])


def test_channel_files_are_compared(tmp_path: Path) -> None:
    toy = Toy(tmp_path, 4, channels=2)
    save(toy.images[0][1], image(50, (12, 11, 9)))
    save(toy.images[1][1], image(51), shifted(1.0))
    save(toy.images[2][1], image(52), shifted(0.005))
    toy.images[3][1].unlink()
    toy.images[3] = toy.images[3][:1]
    assert [(p.severity, p.code, p.case) for p in toy.check().problems] == [
        ("error", "channel-shape", "c0"),
        ("error", "channel-affine", "c1"),
        ("error", "channels", "c3_m0"),
        ("warning", "channel-affine", "c2"),
    ]
    toy.images[3] = (*Toy(tmp_path / "more", 1, channels=3).images[0],)
    assert "the case has 3 channels (expected 2" in toy.check().to_text()


def test_warnings_between_cases(tmp_path: Path) -> None:
    toy = Toy(tmp_path, 4)
    for path in (toy.images[0][0], toy.labels[0]):
        source = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
        save(path, source, np.diag([1.0, 1.0, 9.0, 1.0]))
    for path, array in ((toy.images[1][0], image(99)), (toy.labels[1], label())):
        save(path, array, np.diag([-1.0, -1.0, 2.0, 1.0]))
    save(toy.images[3][0], image(20))  # the content of case 2
    for path in toy.labels:
        whole: Any = nibabel.load(path)
        mask = np.asarray(whole.dataobj)
        save(path, np.where(mask == 2, 0, mask).astype(np.uint8), whole.affine)
    report = toy.check(patch=(8, 11, 16))
    assert report.errors == ()
    warned = {p.code: p for p in report.warnings if p.code != "small-volume"}
    assert set(warned) == {"spacing-outlier", "orientation", "duplicate", "class-absent"}
    assert warned["spacing-outlier"].case == "c0_m0" and "1x1x9 mm" in warned["spacing-outlier"].message
    assert "RAS: 3 cases" in warned["orientation"].message and "LPS: 1 case (c1_m0)" in warned["orientation"].message
    assert warned["duplicate"].case == "c3_m0" and str(toy.images[2][0]) in warned["duplicate"].message
    assert "class 2 vein" in warned["class-absent"].message
    small = [p for p in report.warnings if p.code == "small-volume"]
    assert len(small) == 4 and "along z (10 < 16)" in small[0].message


def test_qform_that_contradicts_the_sform(toy: Toy) -> None:
    volume = nibabel.Nifti1Image(image(0), AFFINE)
    volume.set_qform(shifted(3.0), code=1)
    nibabel.save(volume, toy.images[0][0])
    edit(toy.images[1][0], with_impossible_qform)
    assert found(toy.check()) == [("warning", "qform-sform")] * 2


def test_unlabelled_cases_and_faults_of_the_whole(toy: Toy) -> None:
    dataset = toy.open()
    training = (replace(dataset.training[0], label=None), *dataset.training[1:])
    report = check_dataset(replace(dataset, training=training, faults=("x: too few; add one",)), workers=1)
    assert found(report) == [("error", "dataset"), ("warning", "unlabelled")]
    assert (report.errors[0].message, report.errors[0].remedy) == ("x: too few", "add one")


def test_a_mixture_is_listed_in_full_by_processes_too(tmp_path: Path) -> None:
    toy = Toy(tmp_path, 6)
    FILE_DAMAGE["bit flipped in the stream"][1](toy.images[0][0])
    IMAGE_ERRORS["NaN"][1](toy.images[1][0])
    LABEL_PROBLEMS["shape"][2](toy.labels[1])
    LABEL_PROBLEMS["unknown value"][2](toy.labels[1 + 1])
    LABEL_PROBLEMS["float"][2](toy.labels[3])
    toy.labels[4].unlink()
    expected = [
        ("c0_m0", "corrupt"),
        ("c1_m0", "non-finite"),
        ("c1_m0", "label-shape"),
        ("c2_m0", "label-value"),
        ("c4_m0", "missing"),
        ("c3_m0", "label-float"),
    ]
    report = check_dataset(toy.open(), workers=2)
    assert [(p.case, p.code) for p in report.problems] == expected
    assert report == toy.check()
    text = report.to_text()
    assert "Errors (5)" in text and "Warnings (1)" in text and "toy: 6 cases, 5 errors, 1 warning" in text
    assert all(p.file in text and p.message in text and p.remedy in text for p in report.problems)
    assert json.loads(json.dumps(report.to_json())) == report.to_json()


def die_on_case_1(case: Case) -> CaseReport:
    if case.name == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return CaseReport(case.name)


def fail_on_case_1(case: Case) -> CaseReport:
    if case.name == "1":
        raise RuntimeError("unforeseen")
    return CaseReport(case.name)


@pytest.mark.parametrize(("check", "workers"), [(die_on_case_1, 2), (fail_on_case_1, 1)])
@pytest.mark.fault("case-kills-the-check")
def test_a_case_that_kills_its_worker_is_one_error(check: Any, workers: int) -> None:
    cases = [Case(str(i), (Path(f"{i}.nii"),), None) for i in range(4)]
    facts = _check_cases(cases, check, workers)
    assert [fact.name for fact in facts] == ["0", "1", "2", "3"]
    assert [[p.code for p in fact.problems] for fact in facts] == [[], ["crashed"], [], []]
    assert_seen("case-kills-the-check", facts[1].problems[0].code)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["hippocampus", "sarcoma_ct"])
def test_real_data_has_no_errors(name: str, real_data: Path) -> None:
    dataset = open_dataset(real_data / name)
    report = check_dataset(replace(dataset, training=dataset.training[:20]), workers=1)
    assert report.errors == (), report.to_text()
    assert report.summary["labels"][1]["cases"] == min(20, len(dataset.training))
