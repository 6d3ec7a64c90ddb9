"""profiling/benchmark_nnunet.py up to nnU-Net itself: its plan as our configuration, our data set in its layout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest
import torch

from fusionseg.config import load_config
from fusionseg.models import build_model
from fusionseg.runs.cases.datasets import RunDataset, open_run_datasets
from fusionseg.utils.errors import UserError

PROFILING = Path(__file__).resolve().parents[2] / "profiling"
PLANS = {
    # Thick slices along X of the files: nnU-Net reads (Z, Y, X) and puts the axis of the largest spacing first.
    "transpose_forward": [2, 0, 1],
    "transpose_backward": [1, 2, 0],
    "configurations": {
        "3d_fullres": {
            "patch_size": [16, 48, 32],
            "batch_size": 3,
            "spacing": [5.0, 0.5, 0.75],
            "architecture": {
                "arch_kwargs": {
                    "features_per_stage": [8, 16, 32, 32],
                    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
                    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
                }
            },
        }
    },
}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PROFILING))
    import benchmark_nnunet

    return benchmark_nnunet


def opened(benchmark: ModuleType, data: Path, *settings: str) -> RunDataset:
    config = load_config(str(benchmark.BASE), [f"data.root={data}", *benchmark.SOME, "data.folds=3", *settings])
    (dataset,) = open_run_datasets(config)
    return dataset


def test_a_plan_becomes_the_same_training(
    benchmark: ModuleType, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    """The axes are those of the files, and the network has nnU-Net's kernels and strides."""
    plan = benchmark.read_plan(PLANS)
    assert plan.patch == [16, 32, 48] and plan.spacing == [5.0, 0.75, 0.5]
    assert plan.kernels[0] == [1, 3, 3] and plan.strides == [[1, 2, 2], [2, 2, 2], [2, 2, 2]]
    data = make_dataset(tmp_path / "data")
    settings = plan.settings(torch.device("cpu"))
    config = load_config(str(benchmark.BASE), [f"data.root={data}", *settings])
    assert config.train.global_batch == config.train.micro_batch == 3
    network = build_model(config.model, in_channels=1, out_channels=2)
    kernels = [m.weight for m in network.modules() if isinstance(m, torch.nn.Conv3d)]
    assert kernels[0].shape == (8, 1, 1, 3, 3)
    on_gpu = plan.settings(torch.device("cuda"))
    assert "train.precision=fp16" in on_gpu and "train.compile=true" in on_gpu


@pytest.mark.parametrize("layout", ["msd", "nnunet"])
def test_the_data_set_in_the_layout_of_nnunet(
    benchmark: ModuleType, make_dataset: Callable[..., Path], tmp_path: Path, layout: str
) -> None:
    """A file for each channel, the labels, and names that are the same for both trainings."""
    data = make_dataset(tmp_path / "data", channels=2, layout=layout)
    raw = tmp_path / "raw" / "Dataset900_benchmark"
    benchmark.write_raw(opened(benchmark, data), raw)
    described = json.loads((raw / "dataset.json").read_text())
    assert described["numTraining"] == 5 and len(described["channel_names"]) == 2
    assert described["labels"] == {"background": 0, "ball1": 1}
    assert len(list((raw / "imagesTr").iterdir())) == 10
    second = nibabel.load(raw / "imagesTr" / "case_002_0001.nii.gz")
    if layout == "msd":
        source = nibabel.load(data / "imagesTr" / "case_002.nii.gz")
        expected = np.asanyarray(source.dataobj)[..., 1]
    else:
        source = nibabel.load(data / "imagesTr" / "case_002_0001.nii.gz")
        expected = np.asanyarray(source.dataobj)
    np.testing.assert_array_equal(np.asanyarray(second.dataobj), expected)
    np.testing.assert_array_equal(second.affine, source.affine)
    assert (raw / "labelsTr" / "case_002.nii.gz").exists()


def test_a_data_set_that_nnunet_would_read_in_another_way_is_refused(
    benchmark: ModuleType, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    """Label values with a gap: nothing is written."""
    data = make_dataset(tmp_path / "data")
    described = json.loads((data / "dataset.json").read_text())
    described["labels"] = {"0": "background", "1": "ball1", "3": "other"}
    (data / "dataset.json").write_text(json.dumps(described))
    raw = tmp_path / "raw"
    with pytest.raises(UserError, match="one for each class"):
        benchmark.write_raw(opened(benchmark, data), raw)
    assert not raw.exists()


def test_without_nnunet_the_program_says_what_to_install(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and the command."""
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    for part in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{part}", "")
    monkeypatch.setattr(sys, "argv", ["benchmark_nnunet.py"])
    assert benchmark.main() == 2
    assert "pip install -c constraints.txt -e '.[nnunet]'" in capsys.readouterr().err
