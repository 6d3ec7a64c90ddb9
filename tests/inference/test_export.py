"""`fusionseg export`: programs of other libraries, whose masks are those of `predict`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from tiny_networks import NETWORKS, tiny

from fusionseg import cli
from fusionseg.commands.results import export as command
from fusionseg.config import DataConfig, validate
from fusionseg.data.labels.scheme import LabelScheme, Region
from fusionseg.export.contract import refusals, weights_hash
from fusionseg.export.export import Exported, ExportOptions, export_runs
from fusionseg.export.programs import FORMATS, write_program
from fusionseg.export.standalone import run_onnx
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.training.tasks.choice import build_task

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own

WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "monai", "fusionseg", "scipy"):
    sys.modules[name] = None  # an import of it raises ImportError
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def model(tiny_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An ensemble of two networks, the same one twice, as an ONNX model."""
    folder = tmp_path_factory.mktemp("export") / "model"
    return export_runs([tiny_run(), tiny_run()], ExportOptions("onnx", folder, cases=1, licence="CC-BY-4.0"))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A scan with noise, balls of the intensities of the training, and flipped axes."""
    rng = np.random.default_rng(1)
    values = rng.normal(100, 10, (30, 24, 20))
    values[4:12, 5:14, 4:12] += 150
    values[16:26, 8:18, 6:16] += 300
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.diag([-0.8, -0.9, 1.4, 1.0])), path)
    return path


def run_without_torch(model: Path, *words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(model / "run.py"), *map(str, words)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, env=environment, cwd=model, capture_output=True, text=True, check=False, timeout=300)


def test_the_runner_needs_no_torch_and_gives_the_masks_of_predict(
    model: Exported, tiny_run: Callable[..., Path], scan: Path, tmp_path: Path
) -> None:
    done = run_without_torch(model.folder, "-i", scan, "-o", tmp_path / "mask.nii.gz")
    assert done.returncode == 0, done.stderr
    options = ("--device", "cpu", "--precision", "fp32")
    assert cli.main(["predict", str(tiny_run()), "-i", str(scan), "-o", str(tmp_path / "masks"), *options]) == 0
    expected, found = (nibabel.load(tmp_path / name) for name in ("masks/scan.nii.gz", "mask.nii.gz"))
    theirs, ours = np.asarray(expected.dataobj), np.asarray(found.dataobj)
    assert len(np.unique(theirs)) > 1
    assert (theirs != ours).mean() <= 1e-5 and theirs.dtype == ours.dtype
    np.testing.assert_array_equal(found.affine, expected.affine)

    again = run_without_torch(model.folder, "-i", scan, "-o", tmp_path / "mask.nii.gz")
    assert again.returncode == 2 and "--overwrite" in again.stderr
    wrong = run_without_torch(model.folder, "-i", scan, scan, "-o", tmp_path / "two.nii.gz")
    assert wrong.returncode == 2 and "expected 1: MR0" in wrong.stderr


def test_the_contract_and_the_comparison(model: Exported, tiny_run: Callable[..., Path]) -> None:
    contract, parity = (json.loads((model.folder / name).read_text()) for name in ("contract.json", "parity.json"))
    assert [member["program"] for member in contract["members"]] == ["network_0.onnx", "network_1.onnx"]
    member = contract["members"][0]
    assert contract["licence"] == "CC-BY-4.0" and contract["channels"] == ["MR0"]
    assert contract["output"]["names"] == ["background", "ball1", "ball2"]
    assert member["window"]["patch"] == [16, 16, 16] and member["input"]["orientation"] == "RAS"
    network = Predictor([tiny_run()], PredictOptions("cpu")).members[0]
    assert member["network"]["weights_sha256"] == weights_hash(network.model.state_dict())
    assert model.is_equal and parity["share"] <= parity["limit"] == 1e-5
    (case,) = parity["cases"]
    assert case["voxels"] > 0 and case["dice_predict"].keys() == {"ball1", "ball2"}
    assert case["dice_predict"] == pytest.approx(case["dice_program"], abs=1e-3)


def test_regions_are_painted_as_predict_paints_them(model: Exported, tiny_run: Callable[..., Path], scan: Path) -> None:
    predictor = Predictor([tiny_run()], PredictOptions("cpu", precision="fp32"))
    regions = tuple(Region(str(value), (1,), value) for value in (7, 300, 2))
    predictor.scheme = replace(predictor.scheme, regions=regions, sigmoid=True)
    network = run_onnx.Network(model.folder)
    network.contract["output"] |= {"activation": "sigmoid", "values": [7, 300, 2], "dtype": "uint16"}
    mask, expected = network.segment(run_onnx.read_image([scan], ["MR0"])), predictor([scan])
    assert len(np.unique(expected)) > 1
    assert (mask != expected).mean() <= 1e-5 and mask.dtype == expected.dtype


@pytest.mark.parametrize("kind", ["torchscript", "torch"])
def test_programs_of_torch(kind: str, tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    assert cli.main(["export", str(tiny_run()), "--format", kind, "-o", str(tmp_path / "m"), "--cases", "1"]) == 0
    contract, parity = (json.loads((tmp_path / "m" / name).read_text()) for name in ("contract.json", "parity.json"))
    assert parity["voxels"] > 0 and parity["share"] <= 1e-5
    run = FORMATS[kind].open(tmp_path / "m" / contract["members"][0]["program"])
    windows = torch.randn((3, 1, 16, 16, 16))
    with torch.no_grad():
        expected = Predictor([tiny_run()], PredictOptions("cpu")).members[0].model(windows)
        torch.testing.assert_close(run(windows), expected, rtol=1e-4, atol=1e-4)


def test_the_command_offers_all_formats() -> None:
    assert set(command.FORMATS) == set(FORMATS)


def test_other_files_are_not_replaced(
    tiny_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = str(tiny_run()), tmp_path / "notes"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    assert cli.main(["export", run, "-o", str(folder)]) == 2
    assert "did not write" in capsys.readouterr().err and [path.name for path in folder.iterdir()] == ["thesis.txt"]
    assert cli.main(["export", run, run]) == 2
    assert "--output: is missing" in capsys.readouterr().err
    assert cli.main(["export", run, "--cases", "-1"]) == 2


def test_parts_that_only_fusionseg_has_are_named(tiny_run: Callable[..., Path]) -> None:
    member = Predictor([tiny_run()], PredictOptions("cpu")).members[0]
    assert refusals(member) == []
    data = DataConfig.model_validate(
        {"transforms": [{"name": "monai.transforms:ScaleIntensityd", "args": {"keys": "image"}}]}
    )
    assert refusals(replace(member, config=member.config.model_copy(update={"data": data}))) == ["data.transforms"]


@pytest.mark.long
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", NETWORKS)
def test_all_networks(name: str, kind: str, tmp_path: Path) -> None:
    config = validate({"name": "all", "device": "cpu", **tiny(name)})
    torch.manual_seed(0)
    model = build_task(config, LabelScheme.of_names(["background", "a", "b"])).build_network(1, 3).eval()
    write_program(kind, model, (1, *config.data.patch), tmp_path / "program")  # compares the two
