"""Memory of a worker of the preparation: an estimate that holds, a bound that is respected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from faults.catalogue import assert_seen
from preparing import run

from fusionseg.config import DataConfig
from fusionseg.data.formats.case import Case
from fusionseg.data.formats.geometry import Grid
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing import workers
from fusionseg.data.preprocessing.memory import SLACK_BYTES, MemoryLimit, needed_bytes
from fusionseg.data.preprocessing.record import PreparedCase
from fusionseg.data.preprocessing.store import write_case
from fusionseg.data.preprocessing.volume import load_volume
from fusionseg.data.preprocessing.workers import prepare_cases
from fusionseg.utils.machine import process_memory_bytes

SHAPE = (100, 100, 60)
OBLIQUE = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image in float64, which takes most memory to read, and its label."""
    folder = tmp_path_factory.mktemp("scan")
    image = np.random.default_rng(0).normal(size=SHAPE)
    for name, affine in (("straight", np.diag([1, 1, 2, 1.0])), ("oblique", OBLIQUE)):
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / f"{name}.nii")
        nibabel.save(nibabel.Nifti1Image((image > 0).astype(np.uint8), affine), folder / f"{name}_label.nii")
    return folder


class Peak(Exception):
    """Bytes that a worker took for a case."""


def measure(config: DataConfig, folder: Path, limit: MemoryLimit, case: Case) -> PreparedCase:
    before = process_memory_bytes("VmRSS")
    volume = load_volume(case.images, case.label, config, LabelScheme.of_names(["background", "one"]), memory=limit)
    write_case(folder, case.name, volume, [], "float16")
    raise Peak(process_memory_bytes("VmHWM") - before)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("straight", {"spacing": [0.7, 0.7, 1.0], "intensity": {"percentiles": [1, 99], "nonzero": True}}),
        ("oblique", {"spacing": [0.7, 0.7, 1.0], "intensity": {"clip": [-1, 1]}}),
    ],
)
def test_a_worker_takes_no_more_than_the_estimate(tmp_path: Path, scan: Path, name: str, steps: dict[str, Any]) -> None:
    config = DataConfig.model_validate({**steps, "workers": 2, "worker_memory_gb": 2.0})
    case = Case(name, (scan / f"{name}.nii",), scan / f"{name}_label.nii")
    other = Case("other", (scan / "missing.nii",), None)  # a single case would be prepared in this process
    outcomes = dict(prepare_cases(lambda_free(config, tmp_path), [case, other], config))
    peak = outcomes[case]
    assert isinstance(peak, Peak)
    affine = OBLIQUE if name == "oblique" else np.diag([1, 1, 2, 1.0])
    estimate = needed_bytes(Grid(SHAPE, affine), config, 1, 1)
    assert 0.2 * (estimate - SLACK_BYTES) < peak.args[0] < estimate


def lambda_free(config: DataConfig, folder: Path) -> Any:
    from functools import partial

    return partial(measure, config, folder)


@pytest.mark.fault("case-too-large-for-a-worker")
def test_a_case_beyond_the_bound_is_refused_and_the_others_go_on(tmp_path: Path, make_dataset, tiny_config) -> None:
    root = make_dataset(tmp_path / "Task94", cases=3)
    path = root / "imagesTr/case_001.nii.gz"
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[:3, :3] *= 60  # a wrong unit in the header: resampled, it would have 200,000 times as many voxels
    for file in (path, root / "labelsTr/case_001.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(file).dataobj), affine), file)
    data = {"spacing": [1.0, 1.0, 1.0], "workers": 2, "worker_memory_gb": 1.5}
    report = run(tiny_config(root, tmp_path / "out", data=data))
    assert sorted(report.prepared) == ["case_000", "case_002"]
    assert list(report.failed) == ["case_001"]
    message = report.failed["case_001"]
    assert_seen("case-too-large-for-a-worker", message)
    assert str(path) in message and "data.worker_memory_gb allows 1.5 GB" in message
    assert "resampling to data.spacing [1.0, 1.0, 1.0] takes about" in message


def test_a_case_beyond_its_share_is_prepared_by_fewer_workers(
    tmp_path: Path, make_dataset, tiny_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_dataset(tmp_path / "Task95", cases=4)
    started: list[int] = []
    whole = workers.map_cases

    def watched(function: Any, items: Any, **options: Any) -> Any:
        started.append(options["workers"])
        return whole(function, items, **options)

    monkeypatch.setattr(workers, "map_cases", watched)
    monkeypatch.setattr(workers, "available_memory_bytes", lambda: 0.7e9)
    config = tiny_config(root, tmp_path / "out", data={"workers": 4})
    report = run(config)
    assert len(report.prepared) == 4 and report.failed == {}
    assert started[0] == 4 and len(started) == 2 and started[1] < 4


def test_the_preparation_loads_neither_torch_nor_monai() -> None:
    code = "import sys, fusionseg.data.preprocessing.prepare; print({'torch', 'monai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
