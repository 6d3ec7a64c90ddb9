"""`fusionseg export`: programs of other libraries, whose masks are those of `predict`."""

from __future__ import annotations

import json
import os
import shutil
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
from torch import nn

from fusionseg import cli
from fusionseg.commands.results import export as command
from fusionseg.config import DataConfig, validate
from fusionseg.data.formats.case import Case, ChannelFiles
from fusionseg.data.formats.problems import CaseError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.labels.scheme import LabelScheme, Region
from fusionseg.export import export as exports
from fusionseg.export.archive import FORMAT
from fusionseg.export.bundle import BUNDLE
from fusionseg.export.contract import refusals, weights_hash
from fusionseg.export.export import Exported, ExportOptions, export_runs
from fusionseg.export.folder import model_folder, replace_folder
from fusionseg.export.parity import CompareCases, _choose, compare_masks
from fusionseg.export.programs import FORMATS, write_program
from fusionseg.export.standalone import run_onnx
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.training.tasks.choice import build_task
from fusionseg.utils.errors import UserError, WriteError

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
    assert set(command.FORMATS) == {*FORMATS, BUNDLE, FORMAT}


def test_other_files_are_not_replaced(
    tiny_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = str(tiny_run()), tmp_path / "notes"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    assert cli.main(["export", run, "-o", str(folder)]) == 2
    assert "did not write" in capsys.readouterr().err and [path.name for path in folder.iterdir()] == ["thesis.txt"]
    (folder / "contract.json").write_text('{"contract": 1}')
    (folder / "network.onnx.data").touch()
    assert cli.main(["export", run, "-o", str(folder)]) == 2
    assert "did not write (thesis.txt)" in capsys.readouterr().err and (folder / "thesis.txt").exists()
    assert cli.main(["export", run, run]) == 2
    assert "--output: is missing" in capsys.readouterr().err
    assert cli.main(["export", run, "--cases", "-1"]) == 2


def test_the_folder_is_checked_before_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, link = tmp_path / "model", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    runs = [tmp_path]
    assert model_folder(runs, link, "onnx") == folder.resolve()
    monkeypatch.chdir(folder)
    assert model_folder(runs, Path("."), "onnx") == folder.resolve()
    with pytest.raises(UserError, match="mount point"):
        model_folder(runs, Path("/proc"), "onnx")
    if os.geteuid():
        tmp_path.chmod(0o555)
        try:
            with pytest.raises(UserError, match="cannot be written: Permission denied"):
                model_folder(runs, folder, "onnx")
        finally:
            tmp_path.chmod(0o755)


def test_an_earlier_export_is_put_back_if_it_cannot_be_replaced(tmp_path: Path) -> None:
    new, folder = tmp_path / "new", tmp_path / "model"
    folder.mkdir()
    (folder / "contract.json").write_text("old")
    with pytest.raises(FileNotFoundError):
        replace_folder(new, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "contract.json").read_text() == "old"
    new.mkdir()
    replace_folder(new, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and not list(folder.iterdir())


def test_a_link_to_an_earlier_export_and_a_data_set_that_has_moved(
    tiny_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, link = tmp_path / "model", tmp_path / "link"
    folder.mkdir()
    (folder / "contract.json").write_text('{"contract": 1}')
    link.symlink_to(folder)
    words = ["--format", "torchscript", "-o", str(link)]
    assert cli.main(["export", str(tiny_run()), f"data.root={tmp_path}/nowhere", *words]) == 0
    assert "masks were not compared" in capsys.readouterr().err
    assert "nowhere" in json.loads((folder / "parity.json").read_text())["not_compared"]
    assert link.is_symlink() and (folder / "network.ts").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"model", "link"}


@pytest.mark.parametrize("setting", ["data.rooot=/x", "train.steps=5"])
def test_a_wrong_setting_is_refused(
    setting: str, tiny_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--format", "torchscript", "-o", str(tmp_path / "model")]
    assert cli.main(["export", str(tiny_run()), setting, *words]) == 2
    assert setting.split("=")[0] in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_an_earlier_export_is_kept_if_the_masks_of_the_new_one_differ(
    tiny_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wrong(folder: Path, predictor: Predictor) -> Callable[[Case], Any]:
        return lambda case: predictor(case.images) + 1

    monkeypatch.setattr(exports, "_masks_by_torch", wrong)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "contract.json").write_text('{"contract": 1}')
    words = ["--format", "torchscript", "--cases", "1", "-o", str(folder)]
    assert cli.main(["export", str(tiny_run()), *words]) == 1
    text = capsys.readouterr().err
    assert "the earlier export is kept" in text and "1 in 100,000, or 3 for each case" in text
    assert [path.name for path in folder.iterdir()] == ["contract.json"]


def test_comparison_of_masks(tmp_path: Path) -> None:
    case = Case("one", (tmp_path / "one.nii.gz",), None)
    found = CompareCases([case], LabelScheme.of_names(["background", "a"]), Readers(), "validation")
    mask = np.zeros((10, 10, 10), np.uint8)

    def compared(different: int) -> Exported:
        other = mask.copy()
        other.flat[:different] = 1
        return Exported(tmp_path, compare_masks(found, lambda _: mask, lambda _: other))

    assert [compared(different).is_equal for different in (0, 3, 4, 1000)] == [True, True, False, False]

    def refuse(case: Case) -> Any:
        raise CaseError([])

    parity = compare_masks(found, refuse, refuse)
    assert parity["share"] is None and parity["not_compared"] == "no case could be predicted"


def test_cases_of_the_comparison() -> None:
    whole, part = (Case(f"{files}", files, None) for files in ((Path("a"), Path("b")), ChannelFiles([Path("a")], [1])))
    assert _choose([part, whole], [], True) == ("validation", [whole])
    assert _choose([part, whole], [], False) == ("validation", [part, whole])
    assert _choose([part], [whole], True) == ("training", [whole])
    assert _choose([part], [], True) == ("training", [])


def with_contract(model: Exported, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a model whose contract is changed."""
    shutil.copytree(model.folder, folder)
    contract = json.loads((folder / "contract.json").read_text())
    change(contract)
    (folder / "contract.json").write_text(json.dumps(contract))
    return folder


def test_channel_files_that_the_runner_cannot_read(model: Exported, scan: Path, tmp_path: Path) -> None:
    def two_channels(contract: dict[str, Any]) -> None:
        contract["channels"] = ["MR0", "MR1"]
        for member in contract["members"]:
            member["input"]["intensity"] *= 2  # the networks read the first channel alone

    folder = with_contract(model, tmp_path / "model", two_channels)
    source = nibabel.load(scan)
    turned = source.as_reoriented(np.array([[1, 1], [2, 1], [0, 1]]))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    found = CompareCases([], LabelScheme.of_names(["background", "a"]), Readers(), "validation")
    reader: dict[str, str] = {}
    mask_of = exports._masks_by_runner(folder, found, reader)
    expected = mask_of(Case("plain", (scan, scan), None))
    assert not reader and len(np.unique(expected)) > 1
    mask = mask_of(Case("turned", (scan, tmp_path / "turned.nii.gz"), None))
    np.testing.assert_array_equal(mask, expected)
    assert "another grid" in reader["turned"]


def test_the_runner_goes_on_after_a_case_that_fails(
    model: Exported, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    scans.mkdir()
    for name in ("a", "b"):
        shutil.copyfile(scan, scans / f"{name}.nii.gz")
    (scans / "._a.nii.gz").write_bytes(b"macOS")
    (masks / "a.nii.gz").mkdir(parents=True)  # a mask cannot be written there
    words = ["--model", str(model.folder), "-i", str(scans), "--overwrite", "-o"]
    assert run_onnx.main([*words, str(masks)]) == 1
    assert f"error: {masks / 'a.nii.gz'}: cannot be written" in capsys.readouterr().err
    assert sorted(path.name for path in masks.iterdir()) == ["a.nii.gz", "b.nii.gz"]
    assert run_onnx.main([*words, str(scan)]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err


def test_the_runner_names_a_model_that_fails(
    model: Exported, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def other_patch(contract: dict[str, Any]) -> None:
        contract["members"][0]["window"]["patch"] = [8, 8, 8]

    folder = with_contract(model, tmp_path / "model", other_patch)
    words = ["--model", str(folder), "-i", str(scan), "-o", str(tmp_path / "mask.nii.gz")]
    assert run_onnx.main(words) == 2
    assert f"error: {scan}: network_0.onnx: onnxruntime fails" in capsys.readouterr().err
    (folder / "network_0.onnx").write_bytes(b"damaged")
    assert run_onnx.main(words) == 2
    assert "network_0.onnx: cannot be opened" in capsys.readouterr().err


class Random(nn.Module):
    """Gives other values at each call."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return windows + torch.rand(())


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_full_disk_is_no_fault_of_the_network(kind: str) -> None:
    with pytest.raises(WriteError, match="No space left on device"):
        write_program(kind, nn.Conv3d(1, 2, 1).eval(), (1, 4, 4, 4), Path("/dev/full"))


def test_a_program_with_other_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torchscript: the program gives other values than its network: its logits"):
        write_program("torchscript", Random().eval(), (1, 4, 4, 4), tmp_path / "network.ts")


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
