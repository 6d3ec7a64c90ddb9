"""The recipe `pathology_tiles` end to end, and what the engine does for a task with a target and with values."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import fusionseg.train
from fusionseg import cli

SHORT = (
    *("device=cpu", "train.steps=4", "train.threads=1", "train.precision=fp32", "train.global_batch=8"),
    *("train.micro_batch=8", "data.folds=2", "data.workers=1", "validate.every=4", "checkpoint.every=2"),
    *("log={every: 1, tensorboard: false}", "data.patch=[16,16,1]"),
)


def train(data: Path, output: Path, *overrides: str, model: str = "model.args.channels=[8,16]") -> int:
    settings = [f"data.root={data}", f"output={output}", *SHORT, model, *overrides]
    return fusionseg.train.main(["--config", "pathology_tiles", *settings])


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on tiles whose slides are kept together."""
    output = tmp_path_factory.mktemp("pathology")
    assert train(tiles, output, "data.group=slide") == 0
    return output / "pathology_tiles"


def records(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_recipe_trains_on_classes_and_keeps_slides_apart(run: Path) -> None:
    (val,) = records(run, "val")
    assert {"accuracy", "auc", "recall_per_class"} <= val.keys() and val["cases"] == 8
    split = json.loads((run / "split.json").read_text())
    sides = {side: [(case["group"], case["target"]) for case in split[side]] for side in ("training", "validation")}
    assert not {group for group, _ in sides["training"]} & {group for group, _ in sides["validation"]}
    assert all([target for _, target in side].count("tumour") == 4 for side in sides.values())
    assert split["labels"] == {"0": "normal", "1": "tumour"}
    config = (run / "config.yaml").read_text()
    assert "name: novograd" in config and "ColourJitter" in config and "target: class" in config
    assert (run / "pictures/validation_00000004.png").exists()


def test_evaluation_repeats_the_validation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(run), "--device", "cpu"]) == 0
    (val,) = records(run, "val")
    summary = json.loads((run / "evaluation/summary.json").read_text())
    assert summary["fields"] == {key: val[key] for key in ("accuracy", "auc", "recall_per_class", "cases")}
    assert "recall_per_class.tumour" in capsys.readouterr().out


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def predict(run: Path, inputs: Path, output: Path, *options: str) -> int:
    return cli.main(["predict", str(run), "--input", str(inputs), "--output", str(output), "--device", "cpu", *options])


def test_prediction_writes_a_table(run: Path, tiles: Path, tmp_path: Path) -> None:
    assert predict(run, tiles, tmp_path / "all") == 0
    rows = {row["case"]: row for row in table(tmp_path / "all")}
    assert len(rows) == 16 and rows["tumour_001_003"]["true class"] == "tumour"
    for row in rows.values():
        probabilities = {name: float(row[f"probability {name}"]) for name in ("normal", "tumour")}
        assert row["class"] == max(probabilities, key=lambda name: probabilities[name])
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    # The values of the validation tiles are those of the validation itself.
    (val,) = records(run, "val")
    held_out = [case["name"] for case in json.loads((run / "split.json").read_text())["validation"]]
    assert val["accuracy"] == sum(rows[name]["class"] == rows[name]["true class"] for name in held_out) / 8
    # A folder of tiles, one tile, and a checkpoint file instead of a run give the same values.
    for number, (weights, inputs) in enumerate(
        [
            (run, tiles / "tumour/slide001"),
            (run, tiles / "tumour/slide001/tumour_001_003.png"),
            (run / "checkpoints/best.pt", tiles / "tumour/slide001"),
        ]
    ):
        assert predict(weights, inputs, tmp_path / str(number)) == 0
        again = {row["case"]: row for row in table(tmp_path / str(number))}["tumour_001_003"]
        assert again["probability tumour"] == rows["tumour_001_003"]["probability tumour"]


def test_prediction_reports_a_damaged_tile_and_goes_on(
    run: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiles / "normal/slide000", tmp_path / "new")
    (tmp_path / "new/normal_000_001.png").write_bytes(b"no image")
    assert predict(run, tmp_path / "new", tmp_path / "out") == 1
    assert "normal_000_001.png" in capsys.readouterr().err
    assert [row["case"] for row in table(tmp_path / "out")] == ["normal_000_000", "normal_000_002", "normal_000_003"]


@pytest.mark.parametrize(
    ("options", "expected"), [(["--tta", "--format", "nrrd"], "--format, --tta"), (["--cases", "test"], "no such case")]
)
def test_options_that_have_no_effect_are_refused(
    run: Path, tiles: Path, tmp_path: Path, options: Sequence[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(run, tiles, tmp_path, *options) == 2
    assert expected in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_other_file_is_not_replaced(run: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "predictions.csv").write_text("mine")
    assert predict(run, tiles, tmp_path) == 2
    assert "is another file" in capsys.readouterr().err and (tmp_path / "predictions.csv").read_text() == "mine"


def back_to_step_2(run: Path, output: Path) -> None:
    """Copy the run as it was after its second step."""
    shutil.copytree(run, output / "pathology_tiles")
    for name in ("step_00000004.pt", "last.pt", "best.pt"):
        (output / "pathology_tiles/checkpoints" / name).unlink()


def test_resumed_run_repeats_the_samples(run: Path, tiles: Path, tmp_path: Path) -> None:
    """A run that is continued from its second step has the losses of the whole run."""
    back_to_step_2(run, tmp_path)
    assert train(tiles, tmp_path, "data.group=slide") == 0
    losses = [[record["loss"] for record in records(folder, "train")] for folder in (run, tmp_path / "pathology_tiles")]
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.target=null"], "is missing, and the task tile classification learns it; name the column"),
        (["data.target=tissue"], "data.target=tissue: there is no such column"),
        (["data.patch=[16,16,2]"], "data.patch: expected one slice"),
        (["metrics=[dice]"], "metrics.0: dice compares masks"),
        (["task=segmentation"], "has no effect, because the task segmentation does not learn it"),
        (["data.labels=[benign,malignant]"], "data.target: 'normal' is no class of the data set"),
        (["model.args.chanels=[8]"], "is no argument of TileNet; did you mean channels?"),
        (
            ["model={name: 'monai.networks.nets:UNet', args: {spatial_dims: 2, channels: [4, 8], strides: [2]}}"],
            "task.name: fusionseg.pathology.task:TileClassification fails on a trial",
        ),
    ],
)
def test_wrong_settings_are_one_message(
    tiles: Path, tmp_path: Path, overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiles, tmp_path, *overrides) == 2
    error = capsys.readouterr().err
    assert expected in error and "Traceback" not in error


def test_classes_of_a_run_do_not_change(
    run: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    back_to_step_2(run, tmp_path)
    shutil.copytree(tiles, tmp_path / "tiles")
    (tmp_path / "tiles/adenoma/slide000").mkdir(parents=True)
    shutil.copy(tiles / "normal/slide000/normal_000_000.png", tmp_path / "tiles/adenoma/slide000/new.png")
    assert train(tmp_path / "tiles", tmp_path, "data.group=slide") == 2
    assert "class 0 was normal, is adenoma now" in capsys.readouterr().err


def test_any_2d_network_can_be_named(tiles: Path, tmp_path: Path) -> None:
    sizes = "init_features: 8, growth_rate: 4, block_config: [1]"
    model = f"{{name: 'monai.networks.nets:DenseNet', args: {{spatial_dims: 2, {sizes}}}}}"
    assert train(tiles, tmp_path, "train.steps=1", "validate.every=1", model=f"model={model}") == 0
    weights = torch.load(tmp_path / "pathology_tiles/checkpoints/last.pt", weights_only=True)["model"]
    assert weights["network.features.conv0.weight"].ndim == 4
