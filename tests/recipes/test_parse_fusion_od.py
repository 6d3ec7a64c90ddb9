"""The tables of the thesis on synthetic vessels: a pre-training, the segmentations that start from it, and Table 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import fusionseg.pretrain
import fusionseg.train
from fusionseg import cli
from fusionseg.cluster.sweep import load_sweep, sweep_order
from fusionseg.config import dump_config, load_config
from fusionseg.config.pretraining import PretrainConfig

SMALL = (
    *("model.depths=[1, 1, 1, 1]", "data.patch=[64, 32, 32]", "data.folds=2", "data.workers=1", "device=cpu"),
    *("train.steps=1", "train.threads=1", "train.precision=fp32", "train.global_batch=1", "train.micro_batch=1"),
    *(
        "validate={every: 1, overlap: 0}",
        "checkpoint.every=1",
        "log={every: 1, tensorboard: false}",
        "schedule.warmup=0",
    ),
)
PRETRAINING = "extends: vessels_table1_pretraining\nname: pre\ngrid: {pretrain.ratio: [0.5], seed: [3]}\n"
TABLE = """
extends: vessels_table1
name: t1
after: [pre]
points: [{name: scratch, init_from: null}, {name: hidden_0.5}]
templates: {init_from: "{output}/pre/{name}-seed{seed}"}
grid: {seed: [3]}
"""


@pytest.mark.long
def test_table_1_starts_each_training_from_the_pre_training_of_its_seed(
    synthetic_data: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "pre.yaml").write_text(PRETRAINING)
    (tmp_path / "t1.yaml").write_text(TABLE)
    data = synthetic_data("vessels", size=48, cases=2)
    settings = [f"data.root={data}", f"output={tmp_path}", f"data.prepared={tmp_path}/prepared", *SMALL]
    files = sweep_order(tmp_path / "t1.yaml")
    assert [file.stem for file in files] == ["pre", "t1"]
    for file in files:
        for run in load_sweep(file, settings).runs:
            config = tmp_path / f"{run.config.name}.yaml"
            config.write_text(dump_config(run.config))
            start = fusionseg.train if run.config.pretrain is None else fusionseg.pretrain
            assert start.main(["--config", str(config)]) == 0
    capsys.readouterr()
    assert cli.main(["table", str(tmp_path / "t1.yaml"), "cluster.gpus_per_node=0", *settings]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lines[_header(lines) :] if line.startswith("|")
    ]
    assert rows[0] == ["name", "runs", "ssim of init_from (prepared grid)", "dice (files)"]
    by_name = {row[0]: row[2:] for row in rows[2:]}
    assert by_name["scratch"][0] == "-" and 0 < float(by_name["hidden_0.5"][0]) < 1
    assert all(0 <= float(dice.strip("*")) <= 1 for _, dice in by_name.values())


def _header(lines: list[str]) -> int:
    return next(number for number, line in enumerate(lines) if line.startswith("| name"))


def test_the_recipe_of_the_thesis() -> None:
    config = load_config("parse_fusion_od")
    assert config.data.patch == (96, 96, 96) and config.data.samples_per_volume == 2 and config.train.global_batch == 2
    assert config.stop.plateau is not None and config.stop.plateau.min_gain == 0.004
    table1, table2 = load_sweep("table1", ["output=/x"]).runs, load_sweep("table2").runs
    assert {run.config.model.name for run in table1} == {"swin_unetr"}
    ratios = {run.config.init_from for run in table1}
    pretrainings = [run.config for run in load_sweep("table1_pretraining", ["output=/x"]).runs]
    assert ratios == {None, *(f"{config.output}/{config.name}" for config in pretrainings)}
    assert {part.ratio for config in pretrainings if isinstance(part := config.pretrain, PretrainConfig)} == {
        0.1, 0.3, 0.5, 0.75,
    }  # fmt: skip
    assert len({run.point for run in table2}) == 12 and {run.config.seed for run in table2} == {0, 1, 2}
    assert {run.config.train.steps for run in table2} == {50000}


def test_the_small_tables_have_the_rows_of_the_full_ones() -> None:
    for name in ("table1", "table1_pretraining", "table2"):
        full, small = load_sweep(name).runs, load_sweep(f"vessels_{name}").runs
        assert [run.config.name for run in full] == [run.config.name for run in small]
        assert [run.config.model.name for run in full] == [run.config.model.name for run in small]
