"""`--precision` of `predict` and `evaluate`, and `precision` of the Python interface."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import fusionseg
from fusionseg import cli
from fusionseg.inference.masks import predictor_hash
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.inference.trained_network import load_trained
from fusionseg.utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own
SCAN = np.random.default_rng(0).normal(150, 80, (20, 18, 16)).astype(np.float32)


def test_the_forward_pass_has_the_precision(tiny_run: Callable[..., Path]) -> None:
    found = {
        precision: fusionseg.predict(
            tiny_run(), SCAN, spacing=(1, 1, 1), device="cpu", probabilities=True, precision=precision
        )
        for precision in (None, "fp32", "bf16")
    }
    assert np.array_equal(found[None], found["fp32"])  # the run was trained in fp32
    assert not np.array_equal(found["bf16"], found["fp32"])
    np.testing.assert_allclose(found["bf16"], found["fp32"], atol=0.05)


def test_a_device_that_lacks_the_precision_is_named(
    tiny_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(SCAN, np.eye(4)), scan)
    command = ["predict", str(tiny_run()), "-i", str(scan), "-o", str(tmp_path / "masks"), "--device", "cpu"]
    assert cli.main([*command, "--precision", "fp16"]) == 2
    assert "fp16 needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()
    with pytest.raises(UserError, match="precision: expected fp32, bf16 or fp16, got 'fp8'"):
        fusionseg.predict(tiny_run(), scan, precision="fp8")


def test_masks_of_another_precision_are_not_kept(tiny_run: Callable[..., Path]) -> None:
    hashes = [
        predictor_hash(Predictor([tiny_run()], PredictOptions(device="cpu", precision=precision)))
        for precision in (None, "fp32", "bf16")
    ]
    assert len(set(hashes)) == 3


def test_an_evaluation_in_a_precision_has_its_own_folder(tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run(), tmp_path / "tiny")  # other tests have the run itself
    assert cli.main(["evaluate", str(run), "--device", "cpu", "--precision", "bf16"]) == 0
    summary = json.loads((run / "evaluation_bf16/summary.json").read_text())
    assert summary["request"]["precision"] == "bf16"
    network = load_trained(run, torch.device("cpu"), "last", precision="bf16")
    assert network.precision.name == "bf16" and load_trained(run, torch.device("cpu")).precision.name == "fp32"
