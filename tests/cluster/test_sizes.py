"""The networks of sweeps: of the sizes that are meant, and told where they are not alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fusionseg.cli import main
from fusionseg.cluster.sweep import load_sweep
from fusionseg.config import RunConfig, dump_config
from fusionseg.train import main as train
from fusionseg.training.network import count_parameters

ROOT = Path(__file__).parents[2]
# A. Dhar, "Swin Fusion UNETR", 2023, one channel and two classes: millions of parameters, counted from the definitions.
THESIS = {
    "swin_unetr": 62.19, "swin_fusion_1_v1": 62.97, "swin_fusion_2_v1": 63.07, "swin_fusion_2_v2": 65.7,
    "swin_fusion_2_v2_k3": 79.6, "swin_fusion_od": 44.7, "swin_fusion_od_k3": 89.8, "swin_fusion_od_large": 46.9,
}  # fmt: skip
# Rows of our Table 2 that are not in the thesis.
BESIDE_THE_THESIS = {
    "swin_unetr_v2": 72.76,
    "swin_v2_fusion_od": 55.28,
    "resenc_unet": 102.34,
    "resenc_fusion_od": 114.40,
}


def sizes(sweep: str, classes: int) -> dict[str, float]:
    """Millions of parameters by the name of the point, or else of the network."""
    runs = load_sweep(ROOT / f"configs/sweeps/{sweep}.yaml").runs
    first = {run.point or run.config.model.name: run.config for run in runs}
    return {name: count_parameters(config, in_channels=1, out_channels=classes) / 1e6 for name, config in first.items()}


def test_the_shipped_sweeps_compare_networks_of_the_intended_sizes() -> None:
    table2 = sizes("table2", 2)
    assert {name: table2.pop(name) for name in THESIS} == pytest.approx(THESIS, rel=1e-3)
    assert table2 == pytest.approx(BESIDE_THE_THESIS, rel=1e-3)
    for sweep, most in (
        ("unets", 1.1),
        ("cross_validation", 1.5),
        ("demo_sweep", 1.5),
        ("masking", 1.0),
        ("pancreas_table", 1.1),
    ):
        found = sizes(sweep, 3).values()
        assert max(found) <= most * min(found), sweep


@pytest.fixture
def config_file(balls: Path, tiny_config: Callable[..., RunConfig], tmp_path: Path) -> Path:
    """A tiny run on `balls`."""
    path = tmp_path / "base.yaml"
    path.write_text(dump_config(tiny_config(balls, tmp_path / "runs")))
    return path


@pytest.fixture
def sweep(tmp_path: Path, config_file: Path) -> Path:
    """A tiny MONAI U-Net beside two others, of which one has no `channels`."""
    (tmp_path / "local.yaml").write_text("{cluster: local, gpus_per_node: 0}")
    file = tmp_path / "three.yaml"
    grid = {"model.name": ["monai_unet", "unet", "segresnet"], "seed": [0, 1, 2]}
    file.write_text(yaml.safe_dump({"name": "three", "base": str(config_file), "grid": grid}))
    return file


def test_submit_lists_parameters_and_what_was_dropped(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["submit", str(sweep), "--cluster", str(sweep.with_name("local.yaml")), f"output={sweep.parent}/runs"]
    assert main([*command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    column = rows[0].index("parameters")
    assert [row[column] for row in rows[2::3]] == ["2,360", "4,767", "4.70 M"]
    assert "model.name monai_unet -> unet: dropped num_res_units=1" in out
    assert "[unet-seed0, unet-seed1 and 1 more]" in out
    assert "model.name monai_unet -> segresnet: dropped channels=[4, 8]" in out
    assert "warning: the networks differ in size by a factor of" in out and "4.70 M (segresnet-seed0)" in out

    text = yaml.safe_load(sweep.read_text())
    sweep.write_text(yaml.safe_dump({**text, "grid": {"model.name": ["unet", "resunet"]}}))
    assert main([*command, "--dry-run"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_a_dry_run_says_what_was_dropped(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--config", str(config_file), f"output={tmp_path}", "model.name=unet", "--dry-run"]
    assert train(command) == 0
    out = capsys.readouterr().out
    assert "model        unet: " in out
    assert "model.name monai_unet -> unet: dropped num_res_units=1" in out
