"""`fusionseg export --weights`: ONNX files with weights in fp16 and int8, and the difference of their Dice."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from fusionseg import cli
from fusionseg.commands.results import export as command
from fusionseg.data.formats.case import Case
from fusionseg.data.formats.readers import Readers
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.export import small_weights
from fusionseg.export.export import ExportOptions, _report_dice
from fusionseg.export.parity import CompareCases, compare_masks, fallen_classes
from fusionseg.export.programs import FORMATS, write_program
from fusionseg.export.small_weights import WEIGHTS, quantized, store_weights
from fusionseg.export.standalone import run_onnx
from fusionseg.utils.errors import UserError, WriteError

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own
SHAPE = (2, 6, 6, 6)


class Parts(nn.Module):
    """The kinds of weights of the networks: of convolutions, transposed ones, matrix products, and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 16, 3, padding=1)
        self.linear = nn.Linear(16, 32)
        self.position = nn.Parameter(torch.randn(216, 32))
        self.up = nn.ConvTranspose3d(32, 3, 2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.linear(self.conv(image).flatten(2).mT) + self.position
        up: Tensor = self.up(tokens.mT.unflatten(2, image.shape[2:]))
        return up


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A program in float32, and its network."""
    torch.manual_seed(0)
    model, path = Parts().eval(), tmp_path_factory.mktemp("program") / "network.onnx"
    write_program("onnx", model, SHAPE, path)
    return path, model


@pytest.fixture
def copied(program: tuple[Path, nn.Module], tmp_path: Path) -> Path:
    path = tmp_path / "network.onnx"
    path.write_bytes(program[0].read_bytes())
    return path


def types_of(path: Path) -> dict[int, int]:
    """Number of values of each type in a program."""
    counts: dict[int, int] = {}
    for array in onnx.load(path).graph.initializer:
        counts[array.data_type] = counts.get(array.data_type, 0) + int(np.prod(array.dims))
    return counts


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_integers_times_scales_are_the_weights(axis: int) -> None:
    rng = np.random.default_rng(axis)
    values = (rng.standard_normal((5, 4, 3, 6)) * 10 ** rng.uniform(-6, 4, (5, 4, 3, 6))).astype(np.float32)
    values[(slice(None),) * axis + (0,)] = 0  # a channel without weights
    integers, scales = quantized(values, axis)
    steps = scales.reshape([-1 if other == axis else 1 for other in range(4)])
    assert integers.dtype == np.int8 and scales.shape == (values.shape[axis],)
    assert (np.abs(integers * steps - values) <= 0.5001 * steps).all()
    assert (np.abs(integers).max(axis=tuple({0, 1, 2, 3} - {axis}))[1:] == 127).all()


@pytest.mark.parametrize(("weights", "largest"), [("fp16", 1e-3), ("int8", 2e-2)])
def test_programs_keep_their_inputs_and_values(
    weights: str, largest: float, program: tuple[Path, nn.Module], copied: Path
) -> None:
    store_weights(copied, weights, SHAPE)
    counts = types_of(copied)
    embedding, others = 216 * 32, 16 * 2 * 27 + 16 * 32 + 32 * 3 * 8
    if weights == "fp16":
        assert counts[TensorProto.FLOAT16] == embedding + others and TensorProto.INT8 not in counts
    else:
        assert counts[TensorProto.FLOAT16] == embedding and counts[TensorProto.INT8] == others
    assert counts[TensorProto.FLOAT] < 200  # biases and scales
    model = onnx.load(copied)
    ends = [*model.graph.input, *model.graph.output]
    assert [end.type.tensor_type.elem_type for end in ends] == [TensorProto.FLOAT] * 2
    assert {entry.key: entry.value for entry in model.metadata_props}["weights"] == weights
    windows = torch.randn((3, *SHAPE))
    with torch.no_grad():
        expected, found = program[1](windows), FORMATS["onnx"].open(copied)(windows)
    apart = float((found - expected).abs().max() / expected.abs().max())
    assert 0 < apart < largest


def test_an_array_that_fp16_cannot_hold_stays(tmp_path: Path) -> None:
    model, path = nn.Conv3d(2, 16, 3).eval(), tmp_path / "network.onnx"
    with torch.no_grad():
        model.weight[0, 0, 0, 0, 0] = 1e6
    write_program("onnx", model, SHAPE, path)
    before = types_of(path)
    store_weights(path, "fp16", SHAPE)
    assert types_of(path) == before


def test_weights_in_a_file_of_their_own(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_weights, "LARGEST_FILE", 0)
    store_weights(copied, "fp16", SHAPE)
    beside = copied.with_name("network.onnx.data")
    first = beside.stat().st_size
    store_weights(copied, "int8", SHAPE)  # what is small already stays, and the file does not grow
    assert {file.name for file in copied.parent.iterdir()} == {"network.onnx", "network.onnx.data"}
    assert beside.stat().st_size <= first
    monkeypatch.undo()
    store_weights(copied, "fp16", SHAPE)
    assert [file.name for file in copied.parent.iterdir()] == ["network.onnx"]


def test_a_program_that_fails_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--weights int8: onnxruntime cannot run network.onnx .*; take --weights fp32"):
        store_weights(copied, "int8", (1, 2, 2))
    monkeypatch.setattr(onnx, "save", lambda model, path: Path("/dev/full").write_bytes(model.SerializeToString()))
    with pytest.raises(WriteError, match="No space left"):
        store_weights(copied, "fp16", SHAPE)


def test_an_export_states_the_difference_of_the_dice(
    tiny_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, scan = tmp_path / "model", tmp_path / "scan.nii.gz"
    assert cli.main(["export", str(tiny_run()), "--weights", "int8", "--cases", "1", "-o", str(folder)]) == 0
    contract, parity = (json.loads((folder / name).read_text()) for name in ("contract.json", "parity.json"))
    assert contract["weights"] == parity["weights"] == "int8"
    assert "limit" not in parity and parity["dice_limit"] == 0.01 and parity["allowed"] is None
    assert parity["dice_by_class"].keys() == {"ball1", "ball2"}
    (case,) = parity["cases"]
    for name, values in parity["dice_by_class"].items():
        assert values["predict"] == case["dice_predict"][name] > 0
        assert values["program"] == case["dice_program"][name]
        assert values["difference"] == values["program"] - values["predict"]
    text = capsys.readouterr().err
    assert "differ from predict" in text and "| ball1 | 1 " in text and "onnx with int8 weights (0.0 MB)" in text
    assert TensorProto.INT8 in types_of(folder / "network.onnx")

    rng = np.random.default_rng(1)
    values = rng.normal(100, 10, (20, 18, 22))
    values[4:12, 5:14, 4:12] += 300
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.diag([-0.8, -0.9, 1.4, 1.0])), scan)
    without = "import runpy, sys; sys.modules['torch'] = sys.modules['fusionseg'] = None; sys.argv = sys.argv[1:];"
    words = [f"{without} runpy.run_path(sys.argv[0], run_name='__main__')", folder / "run.py", "-i", scan, "-o"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", *words, tmp_path / "mask.nii.gz"], env=environment, check=True, timeout=300)
    found = np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj)
    expected = run_onnx.Network(folder).segment(run_onnx.read_image([scan], ["MR0"]))
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 1


def test_a_fall_of_the_dice_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    label = np.zeros((10, 10, 10), np.uint8)
    label[2:8, 2:8, 2:8] = 1
    image = nibabel.Nifti1Image(label, np.eye(4))
    nibabel.save(image, tmp_path / "one.nii.gz")
    case = Case("one", (tmp_path / "one.nii.gz",), tmp_path / "one.nii.gz")
    found = CompareCases([case], LabelScheme.of_names(["background", "a", "b"]), Readers(), "validation")

    def compared(change: Callable[[Any], None]) -> dict[str, Any]:
        mask = label.copy()
        change(mask)
        return compare_masks(found, lambda _: label, lambda _: mask)

    near = compared(lambda mask: mask.__setitem__((0, 0, 0), 1))
    assert near["dice_by_class"].keys() == {"a"} and fallen_classes(near) == []
    assert near["dice_by_class"]["a"]["difference"] == pytest.approx(2 * 216 / (216 + 217) - 1)
    far = compared(lambda mask: mask.__setitem__(0, 1))
    assert fallen_classes(far) == ["a"]
    other = compared(lambda mask: mask.__setitem__((0, 0, 0), 2))  # only the program has b
    assert other["dice_by_class"]["b"] == {"cases": 1, "predict": 1.0, "program": 0.0, "difference": -1.0}
    part = replace(found, cases=[replace(case, annotated=("a",))])  # b is no error where nobody has drawn it
    assert compare_masks(part, lambda _: label, lambda _: label * 2)["dice_by_class"].keys() == {"a"}
    with caplog.at_level(logging.INFO, "fusionseg"):
        _report_dice(tmp_path, near, "int8")
        assert "lower" not in caplog.text
        _report_dice(tmp_path, far, "int8")
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "int8 weights lower the Dice by more than 0.01: a; " in warning.getMessage()


def test_the_options_are_refused_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.WEIGHTS == WEIGHTS
    assert cli.main(["export", "data.root=x", "--weights", "int8", "--format", "torch", "--cases", "-1"]) == 2
    text = capsys.readouterr().err
    for part in ("no run is given", "--cases: expected", "--weights int8: only ONNX", "got torch"):
        assert part in text
    for name in ("bundle", "fseg", "torchscript"):
        (problem,) = ExportOptions(name, weights="fp16").problems()
        assert f"got {name}" in problem
    assert ExportOptions(weights="int4").problems() and not ExportOptions(weights="fp16").problems()


@cache
def _kept(size: int) -> Tensor:
    return torch.arange(size) / size


class Keeping(nn.Module):
    """Takes its number of windows for a constant, and keeps a tensor, as the windows of Swin networks do."""

    def forward(self, image: Tensor) -> Tensor:
        return (
            torch.cat(list(image.unbind())).unsqueeze(0) * _kept(image.shape[-1])
            if len(image) > 1
            else (image * _kept(image.shape[-1]))
        )


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_network_that_keeps_tensors_is_exported_for_one_window(kind: str, tmp_path: Path) -> None:
    _kept.cache_clear()
    assert write_program(kind, Keeping().eval(), (1, 4, 4, 4), tmp_path / "program") == 1
