"""The hippocampus in slices of three views: region-of-interest crop, group normalisation, ensemble, and the table."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

import fusionseg.train
from fusionseg import cli
from fusionseg.cluster.sweep import Sweep, load_sweep
from fusionseg.config import RunConfig, dump_config
from fusionseg.utils.machine import available_cpus

BORDER = 12
SMALL = (
    *("model.channels=[8, 8]", "train.steps=1", "train.threads=1", "train.precision=fp32", "train.global_batch=2"),
    *("train.micro_batch=2", "data.folds=2", "data.workers=1", "validate.every=1", "checkpoint.every=1", "device=cpu"),
    *("log={every: 1, tensorboard: false}", "schedule.warmup=0"),
)


@pytest.fixture(scope="module")
def heads(make_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MRI channel, two classes, and an empty border as around a head."""
    root = make_dataset(tmp_path_factory.mktemp("data") / "Task04_heads", cases=2, shape=(10, 10, 8), classes=3)
    for file in [*root.glob("imagesTr/*.nii.gz"), *root.glob("labelsTr/*.nii.gz")]:
        image = nibabel.load(file)
        nibabel.save(nibabel.Nifti1Image(np.pad(np.asarray(image.dataobj), BORDER), image.affine), file)
    return root


@pytest.fixture(scope="module")
def sweep(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, list[str]]:
    """The runs of the three views, trained for one step; and the words of `fusionseg table`."""
    folder = tmp_path_factory.mktemp("views")
    file = folder / "views.yaml"
    file.write_text("extends: hippocampus_table\nname: views\ngrid: {seed: [0]}\n")
    settings = [f"data.root={heads}", f"output={folder}", f"data.prepared={folder}/prepared", *SMALL]
    sweep = load_sweep(file, settings)
    for run in sweep.runs:
        config = folder / f"{run.config.name}.yaml"
        config.write_text(dump_config(run.config))
        assert fusionseg.train.main(["--config", str(config)]) == 0
    return sweep, ["table", str(file), "cluster.gpus_per_node=0", "cluster.cpus_per_task=1", *settings]


def test_one_command_makes_the_ensemble_and_the_table(
    sweep: tuple[Sweep, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    views, command = sweep
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    rows = [
        [cell.strip(" *") for cell in line.split("|")[1:-1]] for line in (text[text.index("| name") :]).splitlines()
    ]
    table = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows if len(row) == len(rows[0])}
    assert {"axial", "coronal", "sagittal", "axial + coronal + sagittal"} <= set(table)
    # With several CPUs, each run is evaluated in a process of its own, and once.
    assert len(re.findall(r"^\[[123] of 3\] (axial|coronal|sagittal)-seed0: evaluated$", text, re.M)) == (
        3 if available_cpus() > 1 else 0
    )
    assert list(table["axial"])[2:] == [
        "parameters", "dice (files)", "dice_per_class.ball1 (files)", "dice_per_class.ball2 (files)", "hd95_mm (files)",
    ]  # fmt: skip
    assert (views.folder / "compare.md").read_text() in text + "\n"
    with (views.folder / "compare.csv").open() as stream:
        dice = {row["name"]: float(row["dice (files)"]) for row in csv.DictReader(stream)}
    assert len(dice) == 4
    pictures = [
        views.folder / "axial-seed0" / name / "best_and_worst.png" for name in ("evaluation", "evaluation_ensemble")
    ]
    before = [picture.stat().st_mtime_ns for picture in pictures]
    assert "best: case_" in text and "; worst: case_" in text

    assert cli.main(command) == 0  # nothing is computed again
    assert [picture.stat().st_mtime_ns for picture in pictures] == before
    assert "| axial + coronal + sagittal" in capsys.readouterr().out


def test_the_settings_of_the_report(sweep: tuple[Sweep, list[str]], heads: Path) -> None:
    views = [run.config for run in sweep[0].runs]
    assert [(config.model.view, config.data.patch.index(1)) for config in views] == [  # type: ignore[union-attr]
        ("axial", 2),
        ("coronal", 1),
        ("sagittal", 0),
    ]
    config: RunConfig = views[0]
    assert (config.model.dims, config.model.norm, config.model.is_residual) == (2, "group", True)  # type: ignore[union-attr]
    assert config.augment.rotate is not None and config.augment.rotate.degrees == 10
    assert config.augment.elastic and config.augment.flip and not config.augment.noise and not config.augment.contrast
    prepared = [np.load(file) for file in (sweep[0].folder.parent / "prepared").rglob("image*.npy")]
    raw = [nibabel.load(file).shape for file in heads.glob("imagesTr/*.nii.gz")]
    assert prepared and all(max(image.shape[-3:]) <= max(map(max, raw)) - 2 * (BORDER - 4) for image in prepared)


def test_a_table_of_runs_that_are_not_trained_only_lists_them(
    sweep: tuple[Sweep, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*sweep[1], f"output={tmp_path}", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "3 runs, 3 to do" in out and "| name" not in out
    assert not list(tmp_path.rglob("compare.md"))
