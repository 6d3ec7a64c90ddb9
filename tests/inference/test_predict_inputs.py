"""`fusionseg predict` on each kind of input: the same image gives the same mask, and a fault costs its own case."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dicom_files import oblique, write_series
from numpy.typing import NDArray

import fusionseg
from fusionseg import cli
from fusionseg.data.formats.geometry import LPS_TO_RAS

TinyRun = Callable[..., Path]


def predict(run: Path, given: Path, output: Path, *options: str) -> int:
    return cli.main(["predict", str(run), "-i", str(given), "-o", str(output), "--device", "cpu", *options])


def masks(folder: Path) -> dict[str, NDArray[Any]]:
    return {path.name[:-7]: np.asarray(nibabel.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


@pytest.fixture
def channels(tmp_path: Path, make_dataset: Callable[..., Path]) -> Path:
    """nnU-Net folder `images` of two cases with the channels MR0 and MR1, which differ."""
    root = make_dataset(tmp_path / "d", cases=2, classes=3, channels=2, layout="nnunet")
    for path in (root / "imagesTr").glob("*_0001.nii.gz"):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), path)
    (root / "imagesTr").rename(tmp_path / "images")
    return tmp_path / "images"


def test_all_ways_to_give_two_channels(tiny_run: TinyRun, channels: Path, tmp_path: Path) -> None:
    run = tiny_run(channels=2)
    assert predict(run, channels, tmp_path / "nnunet") == 0
    expected = masks(tmp_path / "nnunet")
    assert sorted(expected) == ["case_000", "case_001"] and all(len(np.unique(mask)) > 1 for mask in expected.values())
    for name in expected:  # a folder for each case, with the names of the channels
        (tmp_path / "cases" / name).mkdir(parents=True)
        for channel in range(2):
            shutil.copy(channels / f"{name}_{channel:04d}.nii.gz", tmp_path / f"cases/{name}/x_mr{channel}.nii.gz")
        shutil.copy(channels / f"{name}_0000.nii.gz", tmp_path / f"cases/{name}/truth.nii.gz")
    # A list in another folder, with the channels in another order.
    listed = [{"image": [f"{name}_000{channel}.nii.gz" for channel in (1, 0)]} for name in expected]
    (tmp_path / "list.json").write_text(json.dumps({"testing": listed, "modality": {"0": "mr1", "1": "MR0"}}))
    assert predict(run, tmp_path / "cases", tmp_path / "of_cases") == 0
    assert predict(run, tmp_path / "list.json", tmp_path / "of_list", "--base-dir", str(channels)) == 0
    for other in ("of_cases", "of_list"):
        found = masks(tmp_path / other)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_an_input_that_cannot_be_predicted_costs_its_own_mask(
    tiny_run: TinyRun, channels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(channels=2)
    first = nibabel.load(channels / "case_000_0000.nii.gz")
    values = np.stack([np.asarray(first.dataobj)] * 3, axis=-1)
    nibabel.save(nibabel.Nifti1Image(values, first.affine), channels / "three.nii.gz")
    (channels / "broken.nii.gz").write_bytes((channels / "case_000_0000.nii.gz").read_bytes()[:-30])
    (channels / "case_001_0001.nii.gz").write_bytes(b"")
    (channels / "notes.txt").touch()
    assert predict(run, channels, tmp_path / "masks") == 1
    said = capsys.readouterr()
    assert (
        list(masks(tmp_path / "masks")) == ["case_000"]
        and "masks: 1 mask (labels: 0 background, 1 ball1, 2 ball2)" in said.err
    )
    assert "3 of 4 inputs have no mask: broken, case_001, three" in said.err
    assert "three.nii.gz: the case has 3 channels (expected 2, the network reads MR0, MR1)" in said.err
    assert "broken.nii.gz: cannot be read: " in said.err and "Traceback" not in said.err
    assert f"{channels}: left out: 1 file or folder (notes.txt)" in said.err
    assert predict(run, channels, tmp_path / "masks", "--skip-existing") == 1  # the others are tried again


def test_masks_do_not_go_where_they_would_be_inputs(
    tiny_run: TinyRun, balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, lists, cases = tiny_run(), tmp_path / "lists", tmp_path / "cases"
    (tmp_path / "scans").mkdir()
    lists.mkdir()
    shutil.copy(balls / "imagesTr/case_000.nii.gz", tmp_path / "scans/a.nii.gz")
    (lists / "l.json").write_text(json.dumps({"test": ["a.nii.gz"], "base_dir": "../scans"}))
    (cases / "p").mkdir(parents=True)
    shutil.copy(balls / "imagesTr/case_000.nii.gz", cases / "p/ct.nii.gz")
    refused = {
        (lists / "l.json", tmp_path / "scans"): "the masks would replace the input images",
        (cases, cases): "the masks would lie among the images",
        (cases, cases / "new"): f"is in the folder of the inputs, {cases}",
        (cases / "p", cases / "p"): "the masks would replace the input images",
        (tmp_path / "scans", tmp_path / "scans"): "the masks would replace the input images",
    }
    for (given, output), message in refused.items():
        assert predict(run, given, output, *(["--cases", "all"] if given.suffix else [])) == 2
        assert message in capsys.readouterr().err
    # A list beside the folder names its images: no other prediction may write there.
    (tmp_path / "l.json").write_text(json.dumps({"test": ["x.nii.gz"], "base_dir": "scans"}))
    assert predict(run, cases, tmp_path / "scans") == 2
    assert "belongs to a data set" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*.gz")) == ["a.nii.gz", "ct.nii.gz"]


def test_inputs_of_the_api(tiny_run: TinyRun, tmp_path: Path) -> None:
    """A DICOM series, the file of it and the array of it are one image; a list has options."""
    run = fusionseg.load_run(tiny_run())
    voxels = np.random.default_rng(0).integers(0, 1500, (20, 18, 16)).astype(np.int16)
    affine = LPS_TO_RAS @ oblique()
    write_series(tmp_path / "p/series", voxels, oblique())
    nibabel.save(nibabel.Nifti1Image(voxels - 1024.0, affine), tmp_path / "s.nii.gz")
    mask = run.predict(tmp_path / "s.nii.gz", device="cpu")
    assert isinstance(mask, np.ndarray) and len(np.unique(mask)) > 1
    for given in (tmp_path / "p/series", tmp_path / "p", [tmp_path / "s.nii.gz"]):
        assert np.array_equal(run.predict(given, device="cpu"), mask)
    assert np.array_equal(run.predict(voxels - 1024.0, affine=affine, device="cpu"), mask)
    entries = [{"image": "s.nii.gz"}, {"image": "p/series"}]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/l.json").write_text(json.dumps({"training": entries[:1], "test": entries[1:]}))
    options: dict[str, Any] = {"output": tmp_path / "masks", "base_dir": tmp_path, "device": "cpu"}
    files = run.predict(tmp_path / "lists/l.json", cases="all", format="mha", **options)
    assert files == {name: tmp_path / f"masks/{name}.mha" for name in ("s", "series")}
    before = files["s"].stat().st_mtime_ns
    assert run.predict(tmp_path / "lists/l.json", skip_existing=True, format="input", **options) == {
        "series": tmp_path / "masks/series.dcm"
    }
    again = run.predict(tmp_path / "lists/l.json", cases="training", skip_existing=True, format="mha", **options)
    assert again == {"s": files["s"]} and files["s"].stat().st_mtime_ns == before
    with pytest.raises(fusionseg.UserError, match=r"format, cases: needs output, the folder for the masks"):
        run.predict(tmp_path / "s.nii.gz", format="mha", cases="all")
    with pytest.raises(fusionseg.UserError, match=r"cases: expected test, training, all or None, got 'train'"):
        run.predict(tmp_path / "lists/l.json", cases="train", **options)


def test_an_evaluation_on_a_list_of_another_place(
    tiny_run: TinyRun, make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run(), run)
    root = make_dataset(tmp_path / "scans", cases=2, classes=3, seed=5)
    (tmp_path / "lists").mkdir()
    (root / "dataset.json").rename(tmp_path / "lists/site.json")
    given = ["evaluate", str(run), "--device", "cpu", "--dataset", str(tmp_path / "lists/site.json")]
    assert cli.main(given) == 2
    assert "none of its 2 images is in" in capsys.readouterr().err
    assert cli.main([*given, "--base-dir", str(root)]) == 0
    found = json.loads((run / "evaluation_lists_site/summary.json").read_text())
    same = fusionseg.evaluate(run, tmp_path / "lists/site.json", base_dir=root, device="cpu")
    assert found["cases"] == 2 and found["dice"] == pytest.approx(same.summary["dice"], nan_ok=True)
    assert cli.main(["evaluate", str(run), "--base-dir", str(root)]) == 2
    assert "--base-dir: belongs to the datalist of --dataset" in capsys.readouterr().err
