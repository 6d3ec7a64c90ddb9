"""From a sweep over folds to the statistics, the best row and its masks, by the commands of docs/statistics.md."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
from written_runs import table

import fusionseg.train
from fusionseg import cli
from fusionseg.cluster.sweep import load_sweep
from fusionseg.config import dump_config

SMALL = (
    *("model.channels=[4, 8]", "train.steps=1", "train.threads=1", "train.precision=fp32", "train.micro_batch=2"),
    *("data.folds=2", "data.workers=1", "data.patch=[16, 16, 16]", "validate.every=1", "checkpoint.every=1"),
    *("device=cpu", "log={every: 1, tensorboard: false}", "schedule.warmup=0"),
)


def test_the_documented_commands_and_nothing_else(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "Task04_balls", cases=4, shape=(18, 18, 18), classes=3)
    file = tmp_path / "folds.yaml"
    grid = "grid: {model.name: [unet, resunet], data.fold: [0, 1]}"
    file.write_text(f"extends: hippocampus_folds\nname: folds\nset: {{}}\n{grid}\n")
    settings = [f"data.root={data}", f"output={tmp_path}", f"data.prepared={tmp_path}/prepared", *SMALL]
    for run in load_sweep(file, settings).runs:  # in this process, which has imported torch already
        (tmp_path / "run.yaml").write_text(dump_config(run.config))
        assert fusionseg.train.main(["--config", str(tmp_path / "run.yaml")]) == 0
    assert cli.main(["table", str(file), "cluster.gpus_per_node=0", "cluster.cpus_per_task=64", *settings]) == 0
    printed, folder = capsys.readouterr().out, tmp_path / "folds"
    made = [
        "compare.md",
        "compare.csv",
        "compare.tex",
        "statistics.md",
        "statistics.json",
        "statistics.csv",
        "best.json",
    ]
    assert not [name for name in made if not (folder / name).exists()]
    assert (folder / "statistics.md").read_text().strip() in printed

    # Every case once, by the run that did not see it; the numbers are those of the run folders.
    scores: dict[str, dict[str, list[float]]] = {"unet": {}, "resunet": {}}
    for path in folder.glob("*/evaluation/cases.csv"):
        split = json.loads((path.parents[1] / "split.json").read_text())
        trained = {case["name"] for case in split["training"]}
        for row in csv.DictReader(path.open()):
            assert row["case"] not in trained
            if row["dice"]:
                scores[path.parts[-3].partition("-")[0]].setdefault(row["case"], []).append(float(row["dice"]))
    rows = {row["name"]: row for row in table((folder / "statistics.md").read_text())}
    means = {name: fmean(map(fmean, values.values())) for name, values in scores.items()}
    for name, values in scores.items():
        assert len(values) == 4 and rows[name]["cases"] == "4"
        assert rows[name]["mean"].strip("*") == f"{means[name]:.4f}"
    assert rows["unet"]["difference"] == "baseline"
    assert rows["resunet"]["difference"].startswith(f"{means['resunet'] - means['unet']:+.4f}")

    assert cli.main(["best", str(folder)]) == 0
    (line,) = re.findall(r"^fusionseg (predict .*)$", capsys.readouterr().out, re.M)
    words = shlex.split(line.replace("INPUT", str(data / "imagesTr")).replace("OUTPUT", str(tmp_path / "masks")))
    best = max(means, key=lambda name: means[name])
    assert words[1:3] == [str(folder / f"{best}-fold{fold}") for fold in (0, 1)]
    assert cli.main(words) == 0
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 4
