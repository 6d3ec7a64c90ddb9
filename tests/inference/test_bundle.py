"""`fusionseg export --format bundle`: MONAI's own command line makes the masks of `predict`, without fusionseg."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from safetensors.torch import load_file

import fusionseg
from fusionseg import cli
from fusionseg.export.bundle import BUNDLE, bundle_evaluator, inference_config, metadata, write_bundle_program
from fusionseg.export.export import Exported, ExportOptions, export_runs
from fusionseg.export.folder import model_folder
from fusionseg.export.programs import has_fixed_device
from fusionseg.export.standalone.bundle import Item, cases, load_program
from fusionseg.export.standalone.run_onnx import RunError
from fusionseg.utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own

WITHOUT_FUSIONSEG = """
import runpy, sys
for name in ("fusionseg", "onnxruntime", "scipy"):
    sys.modules[name] = None  # an import of it raises ImportError
sys.argv = sys.argv[1:]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def bundle(tiny_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("bundle") / "model"
    return export_runs([tiny_run()], ExportOptions(BUNDLE, folder, cases=1, licence="CC-BY-4.0"))


def test_monai_makes_the_masks_of_predict(bundle: Exported, tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    (images := tmp_path / "images").mkdir()
    for name, shape in (("a", (30, 24, 20)), ("b", (12, 24, 9))):  # larger and smaller than a window
        values = rng.normal(100, 10, shape)
        values[4:12, 5:14, 4:12] += 250
        image = nibabel.Nifti1Image(values.astype(np.int16), np.diag([-0.8, -0.9, 1.4, 1.0]))
        nibabel.save(image, images / f"{name}.nii.gz")
    words = ["--dataset_dir", str(images), "--output_dir", str(tmp_path / "masks"), "--device", "$torch.device('cpu')"]
    command = [sys.executable, "-c", WITHOUT_FUSIONSEG, "bundle", "run", "--config_file", "configs/inference.json"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*command, *words], cwd=bundle.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("a", "b"):
        expected = fusionseg.predict(tiny_run(), images / f"{name}.nii.gz", device="cpu", precision="fp32")
        found = nibabel.load(tmp_path / f"masks/{name}.nii.gz")
        assert (np.asarray(found.dataobj) != expected).sum() <= 3 and len(np.unique(expected)) > 1
        np.testing.assert_array_equal(found.affine, nibabel.load(images / f"{name}.nii.gz").affine)


def test_the_comparison_and_the_files(bundle: Exported, tiny_run: Callable[..., Path]) -> None:
    assert bundle.is_equal and bundle.parity["voxels"] > 0 and bundle.parity["share"] <= 1e-5
    weights = load_file(bundle.folder / "models/model.safetensors")
    expected = fusionseg.load_run(tiny_run()).network().state_dict()
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], x) for name, x in expected.items())
    assert (bundle.folder / "docs/license.txt").read_text() == "CC-BY-4.0\n"
    readme = (bundle.folder / "docs/README.md").read_text()
    assert "python -m monai.bundle run" in readme and "segments ball1, ball2." in readme
    assert "import fusionseg" not in "".join(path.read_text() for path in bundle.folder.glob("scripts/*.py"))
    assert "from fusionseg" not in "".join(path.read_text() for path in bundle.folder.glob("scripts/*.py"))


def test_a_bundle_has_the_post_processing_of_its_run(
    bundle: Exported, tiny_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run(), tmp_path / "tiny"))
    content = {"format": "fusionseg post-processing", "largest_foreground": True, "steps": {}, "chosen": {}}
    (run / "postprocessing.json").write_text(json.dumps(content))
    folder = tmp_path / "model"
    for _ in range(2):  # the second export replaces the first
        export_runs([run], ExportOptions(BUNDLE, folder, cases=0))
    assert json.loads((folder / "docs/postprocessing.json").read_text()) == content
    assert "The bundle does not apply it" in (folder / "docs/README.md").read_text()
    assert not (bundle.folder / "docs/postprocessing.json").exists()
    assert "post-processing" not in (bundle.folder / "docs/README.md").read_text()


def test_the_configurations_have_what_monai_asks_for(bundle: Exported) -> None:
    contract = json.loads((bundle.folder / "contract.json").read_text())
    assert json.loads((bundle.folder / "configs/inference.json").read_text()) == inference_config(contract)
    found = json.loads((bundle.folder / "configs/metadata.json").read_text())
    assert found == metadata(contract)
    required = "schema version monai_version pytorch_version numpy_version required_packages_version task description"
    assert {*required.split(), "authors", "copyright", "network_data_format"} <= found.keys()
    image, output = (found["network_data_format"][key] for key in ("inputs", "outputs"))
    assert image["image"]["channel_def"] == {"0": "MR0"} and image["image"]["num_channels"] == 1
    assert output["pred"]["channel_def"] == {"0": "background", "1": "ball1", "2": "ball2"}
    assert found["data_contract"]["orientation"] == "RAS" and found["data_contract"]["intensity"]
    path = str(bundle.folder / "configs/inference.json")
    workflow = ConfigWorkflow(path, logging_file=False, workflow_type="inference")
    missing = [name for name, value in workflow.properties.items() if value["required"] and name not in ("handlers",)]
    assert not [name for name in missing if not workflow._check_optional_id(name, workflow.properties[name])]
    ids = [value["id"] for value in workflow.properties.values() if value["required"]]
    assert ids and all(name in workflow.parser for name in ids)


def test_what_a_bundle_cannot_have(tiny_run: Callable[..., Path], bundle: Exported, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has one network"):
        export_runs([tiny_run(), tiny_run()], ExportOptions(BUNDLE, tmp_path / "two"))
    assert not (tmp_path / "two").exists()
    (bundle.folder / "docs/notes.txt").write_text("my notes")
    try:
        with pytest.raises(UserError, match=r"docs/notes\.txt"):
            model_folder([tiny_run()], bundle.folder, BUNDLE)
    finally:
        (bundle.folder / "docs/notes.txt").unlink()
    assert model_folder([tiny_run()], bundle.folder, BUNDLE) == bundle.folder.resolve()
    assert cli.main(["export", str(tiny_run()), str(tiny_run()), "--format", BUNDLE, "-o", str(tmp_path / "x")]) == 2


class _MakesATensor(torch.nn.Module):
    """A network that makes a tensor on the device of its input, as Swin networks do."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return windows * torch.arange(1.0, 1 + windows.shape[-1], device=windows.device) + torch.ones(4).to(windows)


def test_no_program_is_bound_to_the_device_of_its_export(bundle: Exported, tmp_path: Path) -> None:
    """A move to the device "meta", which has no values, stands for a GPU."""
    found = write_bundle_program(_MakesATensor().eval(), (1, 4, 4, 4), tmp_path)
    assert found["program"] == "models/model.pt2" and not (tmp_path / "models/model.ts").exists()
    assert load_program(str(tmp_path / found["program"]), "meta")(torch.zeros((1, 1, 4, 4, 4), device="meta")).is_meta
    assert (bundle.folder / "models/model.ts").is_file() and not has_fixed_device(bundle.folder / "models/model.ts")


def test_a_case_that_fails_does_not_end_the_others(
    bundle: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluator = bundle_evaluator(bundle.folder, json.loads((bundle.folder / "contract.json").read_text()))
    evaluator.data, evaluator.postprocessing.folder = [{"name": "a"}, {"name": "b"}], tmp_path

    def full(item: Item) -> Item:
        raise torch.OutOfMemoryError(f"no memory for {item['name']}")

    evaluator.preprocessing = full  # type: ignore[assignment]
    with pytest.raises(SystemExit, match="2 of 2 cases"):
        evaluator.run()
    assert "error: b: no memory for b" in capsys.readouterr().out


def test_the_cases_of_a_folder(tmp_path: Path) -> None:
    names = ("b_0001.nii.gz", "b_0000.nii.gz", "a.nii", "._a.nii", "notes.txt")
    for name in names:
        (tmp_path / name).touch()
    two, one = {"channels": ["T1", "T2"]}, {"channels": ["CT"]}
    found = cases(str(tmp_path), two)
    assert [(case["name"], [path.name for path in case["files"]]) for case in found] == [
        ("a", ["a.nii"]),
        ("b", ["b_0000.nii.gz", "b_0001.nii.gz"]),
    ]
    assert [case["name"] for case in cases(str(tmp_path), one)] == ["a", "b_0000", "b_0001"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="has no file"):
        cases(str(tmp_path / "empty"), one)
