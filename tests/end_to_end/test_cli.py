"""Command line: help, schema, dry runs, and the commands from synthetic data to a training."""

from __future__ import annotations

import json
import subprocess
import sys
from math import prod
from pathlib import Path

import jsonschema
import nibabel
import pytest
import yaml

import fusionseg
from end_to_end.conftest import Train, arguments
from end_to_end.runs import COMMANDS, REPOSITORY, TRAIN, Program, snapshot
from fusionseg.config import load_config
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.loading.device_cache import cache_bytes
from fusionseg.data.preprocessing.prepare import open_store

CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
# Sweeps and pre-trainings have schemas of their own.
RUN_CONFIGS = [path for path in CONFIGS if path.parent.name == "configs" and not path.name.startswith("mae")]


def commands() -> list[str]:
    """Return the commands that `fusionseg --help` lists."""
    text = subprocess.run(
        [sys.executable, "-m", "fusionseg", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    ).stdout
    lines = [line.split() for line in text.splitlines() if line.startswith("    ") and not line.startswith("     ")]
    return [words[0] for words in lines]


def test_all_commands_are_listed() -> None:
    assert {"synth", "check", "prepare", "evaluate", "predict", "schema"} <= set(commands())


@pytest.mark.parametrize("module", [*(f"fusionseg {name}" for name in commands()), "fusionseg.train"])
def test_help_has_an_example_and_is_quick(program: Program, module: str) -> None:
    """--help is fast because no large package is imported; -X importtime lists the imported ones."""
    ended = program.fresh("-X", "importtime", "-m", *module.split(), "--help").wait().expect(0)
    prog = "python -m fusionseg.train" if module == "fusionseg.train" else module
    assert f"usage: {prog}" in ended.out
    assert "example" in ended.out.lower()
    assert (f"  {module} " in ended.out) or (f" -m {module} " in ended.out)
    imported = {line.split("|")[-1].strip().split(".")[0] for line in ended.err.splitlines() if "|" in line}
    assert "argparse" in imported
    assert not imported & {"torch", "monai", "numpy", "nibabel", "matplotlib"}


@pytest.mark.parametrize("command", [["-m", "fusionseg"], ["-m", "fusionseg.cli"]], ids=" ".join)
def test_version_and_unknown_commands(program: Program, command: list[str]) -> None:
    assert program.fresh(*command, "--version").wait().expect(0).out == f"fusionseg {fusionseg.__version__}\n"
    for wrong in (["predicct"], []):
        ended = program.fresh(*command, *wrong).wait().expect(2)
        assert "usage: fusionseg" in ended.err
        assert "Traceback" not in ended.err


def test_closed_pipe_is_no_error(program: Program) -> None:
    """`fusionseg schema | head -1`"""
    line = f"set -o pipefail; {sys.executable} -m fusionseg schema | head -1"
    ended = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=REPOSITORY, check=False, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "{\n", "")


# -- the schema ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema(program: Program, tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("schema") / "fusionseg.schema.json"
    printed = json.loads(program.warm(COMMANDS, "schema").wait().expect(0).out)
    program.warm(COMMANDS, "schema", "--output", path).wait().expect(0)
    assert json.loads(path.read_text()) == printed
    jsonschema.Draft202012Validator.check_schema(printed)
    return printed


def test_there_are_configurations() -> None:
    assert {"base.yaml", "demo.yaml", "hippocampus_unet.yaml", "parse_fusion_od.yaml"} <= {p.name for p in RUN_CONFIGS}


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda path: path.name)
def test_schema_accepts_shipped_configurations(path: Path, schema: dict) -> None:
    """Each file as it is written, and resolved with the files that it extends."""
    plain = yaml.safe_load(path.read_text())
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(plain)] == []
    if path.name not in ("base.yaml", "fine_tuning.yaml"):  # layers for other files
        assert list(validator.iter_errors(load_config(path).to_dict())) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": {"stpes": 3}},
        {"augment": "nnunett"},
        {"data": {"layout": "msdd"}},
        {"metrics": [3]},
        {"train": {"steps": "many"}},
        {"optim": {"name": "adamm"}},
        {"model": {"name": "unet", "feature_size": 12}},
        {"modle": {"name": "unet"}},
    ],
    ids=str,
)
def test_schema_and_program_refuse_the_same_configurations(
    program: Program, config_file: Path, tmp_path: Path, schema: dict, wrong: dict
) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"model": {"name": "unet"}, **wrong}))
    ended = program.warm(TRAIN, "--config", path).wait().expect(2)
    assert f"{path}, line " in ended.err


# -- dry runs ------------------------------------------------------------------------------------------------


def test_dry_run(program: Program, config_file: Path, train: Train, tmp_path: Path, balls: Path) -> None:
    """A dry run before and after the preparation writes no file."""
    run, prepared = tmp_path / "runs/tiny", tmp_path / "prepared"
    options = ("train.global_batch=4", "cache.dtype=float16", f"data.prepared={prepared}")
    command = [*arguments(config_file, run, *options), "--dry-run"]
    data = snapshot(balls)

    before = program.warm(TRAIN, *command).wait().expect(0)
    assert list(tmp_path.iterdir()) == []
    assert snapshot(balls) == data
    for part in (
        f"run folder   {run}\n",
        "4 to train, 1 to validate on",
        "channels MR0; classes ball1, ball2",
        "device       cpu, precision fp32 (as configured)",
        "batch        global 4 = micro-batch 1 x 1 rank x accumulation 4",
        "model        monai_unet: 2,360 parameters\n             starts from random weights (no init_from)\n",
        "estimated from the images' headers; not prepared yet",
        "memory       ",
    ):
        assert part in before.out
    missing = program.warm(TRAIN, *command, f"init_from={tmp_path}/none").wait().expect(0)
    assert f"starts from init_from, which a training would refuse now: {tmp_path}/none" in missing.out
    resolved = yaml.safe_load(before.out.split("\n\nrun folder")[0])
    assert resolved["train"]["global_batch"] == 4

    train(run, *options).expect(0)
    written = snapshot(tmp_path)
    after = program.warm(TRAIN, *command).wait().expect(0)
    assert snapshot(tmp_path) == written
    assert f"{run} (would be resumed)" in after.out
    assert "(of the prepared cases)" in after.out
    assert yaml.safe_load((run / "config.yaml").read_text()) == resolved

    config = load_config(run / "config.yaml")
    store = open_store(config.data, config.output, open_dataset(balls))
    voxels = sum(prod(nibabel.load(path).shape) for path in (balls / "imagesTr").iterdir())
    assert len(store.cases) == 5
    assert cache_bytes(list(store.cases.values()), config.cache) == 3 * voxels  # float16 and a byte of label
    environ = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    two = program.warm(TRAIN, *command, env=environ).wait().expect(0)
    assert "global 4 = micro-batch 1 x 2 ranks x accumulation 2" in two.out


def test_dry_run_of_the_thesis_at_full_size(program: Program, tmp_path: Path, balls: Path) -> None:
    """Parameters and memory of the full-size network, without any computation."""
    config = REPOSITORY / "configs/parse_fusion_od.yaml"
    command = ("--config", config, f"data.root={balls}", f"output={tmp_path}", "device=cpu", "--dry-run")
    ended = program.warm(TRAIN, *command).wait().expect(0)
    line = next(line for line in ended.out.splitlines() if line.startswith("model "))
    parameters = int(line.split(": ")[1].split()[0].replace(",", ""))
    assert line.startswith("model        swin_fusion_od: ")
    assert 40e6 < parameters < 60e6
    expected = f" optimizer {8 * parameters / 1e9:.2f}, batch "  # two moments of the gradients in float32
    assert expected in ended.out
    assert list(tmp_path.iterdir()) == []


# -- from nothing to a prepared data set ---------------------------------------------------------------------


def test_synth_check_prepare_train(program: Program, tmp_path: Path) -> None:
    data, output = tmp_path / "chests", tmp_path / "runs"
    ended = program.warm(COMMANDS, "synth", data, "--cases", 3, "--size", 48, "--workers", 1).wait().expect(0)
    assert ended.out == f"{data}: 3 cases of vessels, 48 voxels in a row\n"
    again = tmp_path / "again"
    program.warm(COMMANDS, "synth", again, "--cases", 3, "--size", 48, "--workers", 1).wait().expect(0)
    assert snapshot(again) == snapshot(data)
    refused = program.warm(COMMANDS, "synth", data, "--cases", 4, "--size", 48, "--workers", 1).wait().expect(2)
    assert "holds a synthetic data set with cases 3 (asked for: 4)" in refused.err

    report = program.warm(COMMANDS, "check", data, "--workers", 1, "--patch", 64, 64, 64).wait().expect(0)
    assert "3 cases, 0 errors, " in report.out
    assert report.out.count("[small-volume]") == 3

    # demo.yaml as it is shipped, with a smaller network and fewer folds
    config = tmp_path / "small.yaml"
    config.write_text(
        f"extends: {REPOSITORY}/configs/demo.yaml\nname: small\ndevice: cpu\n"
        f"data: {{root: {data}, folds: 3, patch: [16, 16, 16], workers: 1}}\n"
        "model: {name: unet, channels: [4, 8]}\n"
    )
    prepare = ("prepare", "--config", config, f"output={output}")
    assert "3 prepared, 0 already there, 0 set aside" in program.warm(COMMANDS, *prepare).wait().expect(0).out
    store = next((output / "prepared").iterdir())
    prepared = snapshot(store)
    assert "0 prepared, 3 already there, 0 set aside" in program.warm(COMMANDS, *prepare).wait().expect(0).out
    assert snapshot(store) == prepared

    options = ("train.steps=2", "schedule.warmup=1", "validate.every=2", "train.threads=1")
    trained = program.warm(TRAIN, "--config", config, f"output={output}", *options).wait().expect(0)
    assert "preparing" not in trained.err
    assert (output / "small/checkpoints/last.pt").exists()
    assert snapshot(store) == prepared
