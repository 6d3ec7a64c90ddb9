"""The public Python API: its examples, and that its results are those of the commands."""

from __future__ import annotations

import doctest
import importlib
import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml

import fusionseg
from fusionseg import api
from fusionseg.cli import main

ROOT = Path(__file__).parents[1]
FUNCTIONS = ["load_config", "open_dataset", "build_network", "train", "load_run", "predict", "evaluate", "pretrain"]
FUNCTIONS += ["register_network", "register_loss", "register_optimizer", "register_schedule"]
PARTS = """
import torch
class MyNet(torch.nn.Module):
    def __init__(self, in_channels, out_channels, width):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv3d(in_channels, width, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(width, out_channels, 1)
        )
    def forward(self, image):
        return self.layers(image)
class MyLoss(torch.nn.Module):
    def forward(self, logits, label):
        return torch.nn.functional.cross_entropy(logits, label[:, 0])
def halved(step, steps, lr):
    return lr / 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set in `data` and a trained run in `runs/first`, made by the example of `train`."""
    folder = tmp_path_factory.mktemp("api")
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["synth", "data", "--cases", "3", "--size", "48", "--workers", "1"]) == 0
        run_example("train")
        Path("my_nets.py").write_text(PARTS)
    finally:
        os.chdir(here)
    return folder


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)


def run_example(name: str) -> None:
    """Run the example of a function's docstring in the current folder."""
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(api, name), name, globs={})
    assert test.examples, f"{name} has no example"
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=report.append)
    assert not report, "".join(report)


# -- the surface -----------------------------------------------------------------------------------------------------


def test_the_import_is_light() -> None:
    program = (
        "import sys, fusionseg; dir(fusionseg); fusionseg.__version__\n"
        "print([name for name in ('torch', 'monai', 'numpy', 'pydantic', 'yaml', 'nibabel') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_of_the_api_is_there() -> None:
    assert set(fusionseg.__all__) - {"__version__"} == set(api.__all__)
    assert dir(fusionseg) == sorted(fusionseg.__all__)
    for name in fusionseg.__all__:
        assert getattr(fusionseg, name) is not None
    with pytest.raises(AttributeError, match=r"fusionseg.*has no attribute 'trian'"):
        fusionseg.trian  # noqa: B018


def test_train_is_a_command_and_a_function() -> None:
    """`import fusionseg.train` puts the module in the place of the function: it can be called."""
    import inspect

    import fusionseg.train

    assert callable(fusionseg.train.main)
    assert inspect.signature(fusionseg.train) == inspect.signature(api.train)
    assert fusionseg.train("demo", {"data.root": "data", "name": "first", **SHORT}).status == "completed"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_documentation_of_a_function(name: str) -> None:
    """Args, Returns, Raises, and an example that runs."""
    text = getattr(api, name).__doc__
    assert all(f"\n    {section}:\n" in text for section in ("Args", "Returns", "Raises", "Example"))
    run_example(name)


SHORT: dict[str, Any] = {
    "train.steps": 2,
    "schedule.warmup": 1,
    "data.folds": 3,
    "data.workers": 1,
    "data.patch": [32, 32, 32],
    "model": {"name": "unet", "channels": [4, 8]},
}


# -- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data.root=data", "train.stepz=3", "data.spacing=[1, 1, -1]"]
    with pytest.raises(fusionseg.UserError) as caught:
        fusionseg.train("demo", words)
    capsys.readouterr()
    assert fusionseg.train.main(["--config", "demo", *words]) == 2
    assert capsys.readouterr().err == f"error: {caught.value}\n"
    with pytest.raises(fusionseg.UserError, match=r"train\.stepz \(overrides: train\.stepz\): unknown key"):
        fusionseg.load_config("demo", {"train.stepz": 3})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fusionseg.load_config("dmeo"), "did you mean demo"),
        (lambda: fusionseg.load_config("demo", "train.steps=3"), r'overrides: .*\["train.steps=3"\]'),
        (lambda: fusionseg.train("mae_swin"), "fusionseg.pretrain"),
        (lambda: fusionseg.pretrain("demo"), "fusionseg.train"),
        (lambda: fusionseg.load_run("data"), "data: is no run folder"),
        (lambda: fusionseg.build_network("unte", in_channels=1, out_channels=2), r"model\.name: .*did you mean unet"),
        (
            lambda: fusionseg.build_network("unet", in_channels=1, out_channels=2, chanels=[4]),
            r"model\.chanels: .*did you mean channels",
        ),
        (lambda: fusionseg.open_dataset("nowhere"), "nowhere"),
        (lambda: predict(np.zeros((8, 8, 8))), "array: has the value 0 in every voxel"),
        (lambda: predict(np.full((8, 8, 8), np.nan)), "array: has 512 NaN"),
        (lambda: predict(np.zeros((8, 8))), r"array: the array is 2D \(8, 8\)"),
        (lambda: predict(np.ones((2, 8, 8, 8)) * np.arange(8)), "2 channels \\(expected 1, .*channels first"),
        (lambda: predict(np.zeros((8, 8, 8), complex)), "complex128"),
        (lambda: predict(np.zeros((8, 8, 8)), spacing=None), "spacing: "),
        (lambda: predict(np.zeros((8, 8, 8)), spacing=(1, 1)), "spacing: expected three"),
        (lambda: predict(np.zeros((8, 8, 8)), spacing=None, affine=np.zeros((4, 4))), "array: the affine"),
        (lambda: predict(3, spacing=None), "image: expected an array"),
        (lambda: predict("data/imagesTr", spacing=None), "holds 3 images.*set output"),
        (lambda: predict(image_file()), "spacing, affine: are for arrays"),
        (lambda: predict(image_file(), spacing=None, overlap=1.0, device="gpu"), r"device: .*'gpu'\noverlap: .*1\.0"),
        (lambda: fusionseg.load_run("runs/first").curve("los"), "los: .*loss"),
    ],
)
def test_bad_requests_are_refused(call: Any, message: str) -> None:
    with pytest.raises(fusionseg.UserError, match=message):
        call()


def predict(image: Any, **options: Any) -> Any:
    return fusionseg.predict("runs/first", image, **{"spacing": (1, 1, 1), **options})


def image_file() -> Path:
    return sorted(Path("data/imagesTr").glob("*.nii.gz"))[0]


# -- results ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scan(folder: Path) -> nibabel.Nifti1Image:
    """A scan whose axes point to the left, the back and upwards, with voxels of three sizes; it is in `new`, too.

    The run `runs/half` finds an artery in about half of its voxels: two steps of training find none.
    """
    values = nibabel.load(folder / image_file_of(folder)).get_fdata(dtype=np.float32)[2:44, 5:, :40]
    affine = np.diag([-0.9, -1.1, 1.4, 1.0])
    affine[:3, 3] = (12, -7, 30)
    image = nibabel.Nifti1Image(values, affine)
    (folder / "new").mkdir()
    nibabel.save(image, folder / "new/scan.nii.gz")
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.9, 1.1, 1.4, 1])), folder / "new/ras.nii.gz")
    shutil.copytree(folder / "runs/first", folder / "runs/half")
    run = fusionseg.load_run(folder / "runs/half")
    background, artery = run.predict(values, affine=affine, probabilities=True, device="cpu")
    file = run.folder / "checkpoints/best.pt"
    state = torch.load(file, weights_only=True)
    biases = [value for value in state["model"].values() if value.shape == (2,)]
    biases[-1] -= torch.tensor([0.0, float(np.median(np.log(artery / background)))])
    torch.save(state, file)
    return image


def image_file_of(folder: Path) -> Path:
    return sorted((folder / "data/imagesTr").glob("*.nii.gz"))[0]


def test_an_array_is_predicted_as_its_file_is(scan: nibabel.Nifti1Image) -> None:
    assert main(["predict", "runs/half", "--input", "new", "--output", "masks", "--device", "cpu"]) == 0
    masks = {name: np.asarray(nibabel.load(f"masks/{name}.nii.gz").dataobj) for name in ("scan", "ras")}
    values = np.asarray(scan.dataobj)
    run = fusionseg.load_run("runs/half")
    for _ in range(2):  # with the network that is kept, too
        assert np.array_equal(run.predict(values, affine=scan.affine, device="cpu"), masks["scan"])
    assert np.array_equal(run.predict(values[None], spacing=(0.9, 1.1, 1.4), device="cpu"), masks["ras"])
    assert np.array_equal(run.predict(torch.from_numpy(values), spacing=(0.9, 1.1, 1.4)), masks["ras"])
    for mask in (run.predict("new/scan.nii.gz"), run.predict(["new/scan.nii.gz"])):
        assert np.array_equal(mask, masks["scan"])
    assert all(0.2 < mask.mean() < 0.8 for mask in masks.values())


def test_probabilities(scan: nibabel.Nifti1Image) -> None:
    run = fusionseg.load_run("runs/half")
    options = {"affine": scan.affine, "device": "cpu"}
    probabilities = run.predict(np.asarray(scan.dataobj), probabilities=True, **options)
    assert probabilities.shape == (2, *scan.shape) and probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    assert np.array_equal(probabilities.argmax(axis=0), run.predict(np.asarray(scan.dataobj), **options))
    ensemble = fusionseg.predict([run, "runs/half"], np.asarray(scan.dataobj), probabilities=True, **options)
    assert np.allclose(ensemble, probabilities, atol=1e-6)


def test_prediction_to_files(scan: nibabel.Nifti1Image) -> None:
    files = fusionseg.predict("runs/half", "new", output="api_masks", device="cpu")
    assert files == {name: Path(f"api_masks/{name}.nii.gz") for name in ("ras", "scan")}
    mask = fusionseg.predict("runs/half", "new/scan.nii.gz", device="cpu")
    assert np.array_equal(np.asarray(nibabel.load(files["scan"]).dataobj), mask)
    Path("broken").mkdir()
    Path("broken/bad.nii.gz").write_bytes(b"nothing")
    with pytest.raises(fusionseg.UserError, match=r"1 images could not be predicted(.|\n)*bad\.nii\.gz"):
        fusionseg.predict("runs/half", "broken", output="broken_masks")


def test_a_run_is_what_its_folder_says() -> None:
    run = fusionseg.load_run("runs/first")
    lines = [json.loads(line) for line in Path("runs/first/metrics.jsonl").read_text().splitlines()]
    assert run.records == lines
    assert run.curve("loss") == ([2], [next(line["loss"] for line in lines if line["kind"] == "train")])
    assert run.curve("loss", "val") == ([2], [next(line["loss"] for line in lines if line["kind"] == "val")])
    assert run.best == next(line for line in lines if line["kind"] == "val")
    assert run.channels == ("CT",)
    assert repr(run) == f"Run('runs/first': completed at step 2, dice {run.best['dice']:.4f})"
    state = torch.load("runs/first/checkpoints/last.pt", weights_only=True)["model"]
    network = run.network("last")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_an_evaluation_is_that_of_the_command() -> None:
    evaluation = fusionseg.load_run("runs/first").evaluate(device="cpu")
    summary = Path("runs/first/evaluation/summary.json")
    written = json.loads(summary.read_text())
    assert main(["evaluate", "runs/first", "--device", "cpu"]) == 0
    assert json.loads(summary.read_text()) == written
    assert written["dice"] == pytest.approx(evaluation.summary["dice"], nan_ok=True)
    moved = Path("data").rename("moved")
    try:
        again = fusionseg.evaluate("runs/first", overrides={"data.root": str(moved.absolute())}, device="cpu")
        assert [score.dice for score in again.scores] == [score.dice for score in evaluation.scores]
    finally:
        moved.rename("data")


def test_a_configuration_is_changed_by_loading_it_again() -> None:
    config = fusionseg.load_config("demo", ["train.steps=40", "data.spacing=[1, 1, 2]"])
    assert config == fusionseg.load_config("demo", {"train.steps": 40, "data.spacing": (1, 1, 2)})
    again = fusionseg.load_config(config, {"train": {"steps": 50}, "data.root": Path("data")})
    assert (again.train.steps, again.train.clip_grad, again.data.root) == (50, 1.0, "data")


def test_keys_that_a_changed_name_drops_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("fusionseg")
    logger.addHandler(caplog.handler)
    try:
        fusionseg.load_config("hippocampus_fusion_od")  # its files change the name of the network
        fusionseg.load_config("demo", {"model": {"name": "unet", "channels": [4, 8]}})
        assert caplog.messages == []
        fusionseg.load_config("demo", {"model.name": "unet"})
        assert "dropped feature_size=12" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


def test_a_network_is_that_of_the_configuration() -> None:
    trained = fusionseg.load_run("runs/first").network().state_dict()
    network = fusionseg.build_network("unet", in_channels=1, out_channels=2, channels=(4, 8))
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in trained.items()
    }
    unetr = {"hidden_size": 12, "mlp_dim": 12, "num_heads": 2, "feature_size": 2}
    network = fusionseg.build_network("unetr", in_channels=1, out_channels=2, patch=(32, 16, 16), **unetr)
    assert network(torch.zeros(1, 1, 32, 16, 16)).shape == (1, 2, 32, 16, 16)
    with pytest.raises(fusionseg.UserError, match="patch"):
        fusionseg.build_network("unetr", in_channels=1, out_channels=2, patch=(33, 16, 16), **unetr)


def test_a_registered_network_is_found_by_its_dotted_path() -> None:
    my_nets = importlib.import_module("my_nets")
    assert fusionseg.register_network("short")(my_nets.MyNet) is my_nets.MyNet
    own = {"name": "own", "model": {"name": "short", "args": {"width": 3}}}
    run = fusionseg.train("demo", {"data.root": "data", **SHORT, **own})
    assert yaml.safe_load(Path("runs/own/config.yaml").read_text())["model"]["name"] == "my_nets:MyNet"
    assert isinstance(run.network(), my_nets.MyNet)
    network = fusionseg.build_network("short", in_channels=1, out_channels=2, args={"width": 3})
    assert isinstance(network, my_nets.MyNet)


def test_a_short_name_is_refused_where_it_would_not_be_found() -> None:
    my_nets = importlib.import_module("my_nets")
    with pytest.raises(fusionseg.UserError, match="unet: is the name of another network"):
        fusionseg.register_network("unet")(my_nets.MyNet)

    class Local:
        pass

    with pytest.raises(fusionseg.UserError, match="put it into a file"):
        fusionseg.register_network("local")(Local)


def test_the_reference_page_is_that_of_the_docstrings() -> None:
    """After a change: python docs/api_reference.py > docs/api.md"""
    page = runpy.run_path(str(ROOT / "docs/api_reference.py"))
    assert (ROOT / "docs/api.md").read_text() == page["render"]()
    assert {*page["FUNCTIONS"], "Run", "UserError", "TrainingStopped"} == set(api.__all__)
