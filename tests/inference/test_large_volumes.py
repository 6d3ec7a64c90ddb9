"""Predictions of volumes that do not fit into the memory at once, and of volumes with much air."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from fusionseg import cli
from fusionseg.inference import predictor as predictor_module
from fusionseg.inference.predictor import PredictOptions, Predictor

TURNED = np.array([[0, 0, -2.0, 10], [-1.0, 0, 0, 5], [0, 1.0, 0, 3], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume larger than the windows along two axes and smaller along one, whose axes lie in another order."""
    values = np.random.default_rng(0).normal(0, 100, (44, 48, 9)).astype(np.float32)
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, TURNED), path)
    return path


@pytest.mark.parametrize("changes", [{}, {"spacing": [1.3, 1.1, 0.9]}], ids=["same_voxels", "resampled"])
@pytest.mark.parametrize("members", [1, 2])
def test_any_memory_gives_the_same_prediction(
    tiny_run: Callable[..., Path],
    scan: Path,
    changes: dict[str, Any],
    members: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second network of an ensemble reads other voxels than the first one."""
    results, divisions = [], []
    divide = predictor_module.slabs

    def recorded(*given: Any, **options: Any) -> Any:
        divisions.append(len(divide(*given, **options)))
        return divide(*given, **options)

    monkeypatch.setattr(predictor_module, "slabs", recorded)
    for memory_gb in (None, 1e-9):
        predictor = Predictor([tiny_run()] * members, PredictOptions("cpu", memory_gb=memory_gb))
        first = predictor.members[0]
        data = first.config.data.model_copy(update={"orientation": "RAS", **changes})
        changed = replace(first, config=first.config.model_copy(update={"data": data}))
        predictor.members = [changed, *predictor.members[1:]]
        case = predictor.load((scan,))
        probabilities = predictor.empty_probabilities(case)
        results.append((predictor.outputs_of(case, probabilities), probabilities))
    (mask, probabilities), *others = results
    told = capsys.readouterr().err
    assert divisions[0] == 1 < divisions[1]
    assert re.search(r"memory: the logits of this volume take about 0\.00\d+ GB, of which 1e-09 GB", told)
    assert mask.shape == (44, 48, 9) and len(np.unique(mask)) > 1
    for other_mask, other in others:
        np.testing.assert_allclose(other, probabilities, atol=1e-5)
        assert (other_mask == mask).mean() > 0.999
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    sure = np.abs(np.diff(np.sort(probabilities, axis=0)[-2:], axis=0))[0] > 1e-5
    assert (probabilities.argmax(axis=0) == mask)[sure].all()


def test_the_cpu_holds_the_rows_where_a_gpu_has_no_room_beside_them(
    tiny_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device of the rows is torch's `meta`, in place of a GPU."""
    scan = tmp_path / "scan.nii.gz"
    values = np.random.default_rng(0).normal(0, 100, (12, 12, 12)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), scan)
    predictor = Predictor([tiny_run()], PredictOptions("cpu"))
    expected = predictor([scan])
    (member,) = predictor.members
    sizes: list[int] = []

    class Small(torch.nn.Module):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            sizes.append(len(windows))
            if len(sizes) == 1:
                raise torch.OutOfMemoryError("the rows leave no room")
            return member.model(windows)  # type: ignore[no-any-return]

    predictor.members = [replace(member, model=Small())]
    monkeypatch.setattr(Predictor, "_stitch_device", lambda *_: torch.device("meta"))
    np.testing.assert_array_equal(predictor([scan]), expected)
    assert sizes == [1, 1]


def test_the_command_skips_air(tiny_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Air that is one value far from the patient; the masks are those of another option, and are not kept for it."""
    values = np.full((64, 16, 16), -500, np.float32)
    values[:16] = np.random.default_rng(0).normal(0, 100, (16, 16, 16))
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "in/scan.nii.gz")
    seen: list[int] = []
    count = torch.nn.Module.__call__

    def counted(module: torch.nn.Module, *inputs: Any, **options: Any) -> Any:
        if type(module).__name__ == "UNet":
            seen.append(len(inputs[0]))
        return count(module, *inputs, **options)

    monkeypatch.setattr(torch.nn.Module, "__call__", counted)
    windows, masks = [], []
    for words in ((), ("--skip-air", "--skip-existing")):
        seen.clear()
        command = ("predict", str(tiny_run()), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"))
        assert cli.main([*command, "--device", "cpu", "--overlap", "0", *words]) == 0
        windows.append(sum(seen))
        masks.append(np.asarray(nibabel.load(tmp_path / "out/scan.nii.gz").dataobj))
    assert windows == [4, 1]
    assert (masks[1][16:] == 0).all() and (masks[1][:16] == masks[0][:16]).all()
