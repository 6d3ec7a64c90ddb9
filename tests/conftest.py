"""Fixtures of several test files: small data sets, configurations of tiny trainings, small disks, an NVTX tool."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from faults import catalogue
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

    Each case has one ball for each class k, with intensity 100 + 150 k; the background has 100, the noise a standard
    deviation of 10. So a tiny network learns the classes from the intensity alone. Shapes, voxel sizes and orientations
    (RAS, LPS) differ from case to case.

    Args:
        folder: it must not exist.
        cases: number of cases.
        shape: approximate X, Y, Z.
        classes: number of label values, the background included.
        channels: number of channels; they differ only in their noise.
        layout: "msd" (one file per case, 4D with several channels) or "nnunet" (one file per channel).
        seed: seed of the noise and of the positions.
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
    """Return the configuration of a training of about a second: a U-Net of two levels, patches of 16^3, fp32.

    Args:
        dataset: folder of the data set.
        output: folder of the runs.
        overrides: keys of the configuration; a mapping is merged into the section:
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
    return validate(_merge(raw, overrides))


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def pytest_configure() -> None:
    """Keep the record of the user's own code in a folder of this session, and restore SIGINT.

    A shell ignores SIGINT in background jobs, and the processes of the tests would inherit that.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ["XDG_STATE_HOME"] = (folder := tempfile.mkdtemp(prefix="fusionseg-tests-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the SLURM tests first: they share a cluster and mostly wait, so that one worker runs them in parallel."""
    items.sort(key=lambda item: item.path.name != "test_slurm.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test of a fault compares what it has seen with the catalogue of tests/faults."""
    catalogue.compared.clear()
    yield
    markers = [(name, mark.kwargs.get("partly", False)) for mark in item.iter_markers("fault") for name in mark.args]
    missing = catalogue.not_compared(markers)
    assert not missing, f"not compared with tests/faults: {missing}"


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
    """Data set of five cases, two foreground classes, one channel, MSD layout. Shared: do not change its files."""
    return _make_dataset(tmp_path_factory.mktemp("data") / "Task90_balls", cases=5, classes=3)


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen synthetic tiles of two classes and two slides. Shared: do not change them."""
    from fusionseg.pathology.synthetic import write_tiles

    root = tmp_path_factory.mktemp("tiles") / "tiles"
    write_tiles(root, slides=2, tiles=4, size=24)
    return root


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of a user, for modules of their own. The test's end forgets these modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`small_disk("200k")` mounts a disk of that size; `small_disk("2m,ro")` a read-only one."""
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
    """A tool that records the NVTX ranges of the processes that load it."""
    if shutil.which("gcc") is None and "gcc" not in os.environ.get("FUSIONSEG_REQUIRE", ""):
        pytest.skip("needs gcc for the NVTX tool")
    folder = tmp_path / "nvtx"
    folder.mkdir()
    return NvtxTool(folder)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets `hippocampus` and `sarcoma_ct`, from the variable FUSIONSEG_DATA."""
    folder = os.environ.get("FUSIONSEG_DATA")
    if folder is None:
        pytest.skip("FUSIONSEG_DATA is not set: the folder of the real data sets")
    return Path(folder)
