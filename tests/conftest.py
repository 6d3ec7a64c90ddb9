"""What several test files share: small real data sets, and the configuration of a tiny training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nvtx_tool import NvtxTool

from fusionseg.config import RunConfig, validate

SPACINGS_MM = ((1.0, 1.0, 1.0), (0.8, 0.8, 1.5), (1.2, 1.0, 0.9))

MakeDataset = Callable[..., Path]
TinyConfig = Callable[..., RunConfig]


def _make_dataset(
    folder: Path,
    cases: int = 5,
    shape: tuple[int, int, int] = (24, 20, 18),
    classes: int = 2,
    channels: int = 1,
    layout: str = "msd",
    seed: int = 0,
) -> Path:
    """Write a labelled data set of `cases` volumes case_000, case_001, ... and return its folder.

    Class k is a ball of its own intensity (100 + 150 k; the background is 100, the noise 10), one in each
    case, so that a tiny network learns it from the intensity alone. Sizes, voxel sizes and orientations (RAS,
    LPS) differ from case to case.

    Args:
        classes: label values, the background included.
        channels: the further ones are the first with other noise.
        layout: "msd" (one file per case, 4D with several channels) or "nnunet" (one file per channel).
    """
    rng = np.random.default_rng(seed)
    names = [f"case_{number:03d}" for number in range(cases)]
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number, name in enumerate(names):
        size = np.array(shape) + np.roll((number % 3, 0, 1), number)
        grid = np.stack(np.meshgrid(*(np.arange(s) for s in size), indexing="ij"), axis=-1)
        label = np.zeros(size, np.uint8)
        for value in range(1, classes):
            centre = size * (value / classes, 0.5, 0.5) + rng.uniform(-1, 1, 3)
            label[np.linalg.norm(grid - centre, axis=-1) < 0.22 * size.min()] = value
        image = 100 + 150.0 * label[None] + rng.normal(0, 10, (channels, *size))
        sign = (1, 1, 1) if number % 2 == 0 else (-1, -1, 1)
        affine = np.diag([*(np.array(SPACINGS_MM[number % 3]) * sign), 1.0])
        affine[:3, 3] = rng.uniform(-50, 50, 3)
        stored = image.round().astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / f"labelsTr/{name}.nii.gz")
        if layout == "nnunet":
            for channel, values in enumerate(stored):
                nibabel.save(nibabel.Nifti1Image(values, affine), folder / f"imagesTr/{name}_{channel:04d}.nii.gz")
        else:
            values = stored[0] if channels == 1 else np.moveaxis(stored, 0, -1)
            nibabel.save(nibabel.Nifti1Image(values, affine), folder / f"imagesTr/{name}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps(_describe(names, classes, channels, layout)))
    return folder


def _describe(names: list[str], classes: int, channels: int, layout: str) -> dict[str, Any]:
    labels = {value: "background" if value == 0 else f"ball{value}" for value in range(classes)}
    channel_names = {str(number): f"MR{number}" for number in range(channels)}
    if layout == "nnunet":
        return {
            "channel_names": channel_names,
            "labels": {name: value for value, name in labels.items()},
            "numTraining": len(names),
            "file_ending": ".nii.gz",
        }
    return {
        "name": "balls",
        "modality": channel_names,
        "labels": {str(value): name for value, name in labels.items()},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": [],
    }


def _tiny_config(dataset: Path | None, output: Path, **overrides: Any) -> RunConfig:
    """The configuration of a training of about a second: a U-Net of two levels, patches of 16^3, fp32.

    Args:
        overrides: keys of the configuration; a mapping is laid over the section key by key:
            `tiny_config(data, out, seed=1, train={"steps": 4}, augment={"flip": 0.0})`.
    """
    raw: dict[str, Any] = {
        "name": "tiny",
        "output": str(output),
        "device": "cpu",
        "data": {
            "root": None if dataset is None else str(dataset),
            "patch": [16, 16, 16],
            "workers": 1,
            "dtype": "float32",
        },
        "cache": {"dtype": "float32"},
        "model": {"name": "monai_unet", "channels": [4, 8], "num_res_units": 1},
        "optim": {"name": "adamw", "lr": 1e-2},
        "schedule": {"name": "constant", "warmup": 0},
        "train": {"steps": 4, "precision": "fp32", "threads": 1},
        "validate": {"every": 4},
        "checkpoint": {"every": 2},
        "log": {"every": 1, "tensorboard": False},
    }
    return validate(_lay_over(raw, overrides))


def _lay_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _lay_over(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def pytest_configure() -> None:
    """What a shell puts into the background has SIGINT ignored, and every process of ours would inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests on SLURM share a cluster and mostly wait: first in line, one worker does them while others compute."""
    items.sort(key=lambda item: item.path.name != "test_slurm.py")


@pytest.fixture(scope="session")
def make_dataset() -> MakeDataset:
    """`make_dataset(folder, cases=5, shape=..., classes=2, channels=1, layout="msd")`: see _make_dataset."""
    return _make_dataset


@pytest.fixture(scope="session")
def tiny_config() -> TinyConfig:
    """`tiny_config(dataset, output, **overrides)` -> RunConfig: see _tiny_config."""
    return _tiny_config


@pytest.fixture(scope="session")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cases, two foreground classes, one channel, MSD layout. Shared: do not change the files."""
    return _make_dataset(tmp_path_factory.mktemp("data") / "Task90_balls", cases=5, classes=3)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`small_disk("200k")`: a disk of that size, mounted; `small_disk("2m,ro")`: one that cannot be written."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={options}", "tmpfs", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            if "mount" in os.environ.get("FUSIONSEG_REQUIRE", ""):
                raise RuntimeError(done.stderr)
            pytest.skip(f"needs to mount a disk: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def nvtx_tool(tmp_path: Path) -> NvtxTool:
    """A tool that receives the NVTX ranges of the processes it is loaded into."""
    if shutil.which("gcc") is None and "gcc" not in os.environ.get("FUSIONSEG_REQUIRE", ""):
        pytest.skip("needs gcc for the NVTX tool")
    folder = tmp_path / "nvtx"
    folder.mkdir()
    return NvtxTool(folder)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data sets, `hippocampus` and `sarcoma_ct`, that FUSIONSEG_DATA names."""
    folder = os.environ.get("FUSIONSEG_DATA")
    if folder is None:
        pytest.skip("FUSIONSEG_DATA does not say where the real volumes are")
    return Path(folder)
