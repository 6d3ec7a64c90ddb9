"""Scripts of `launch/` and `profiling/`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from end_to_end.conftest import arguments
from end_to_end.runs import REPOSITORY, Program, records, results

LAUNCH = REPOSITORY / "launch"
RUN = ("train.steps=3", "train.global_batch=2", "train.micro_batch=1", "log.tensorboard=false", "log.every=1")


def start(script: str, *words: str, **env: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY), **env}
    command = ["bash", str(LAUNCH / script), *words]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def words(config: Path, run: Path) -> list[str]:
    """Return the command line of a script: configuration, then overrides."""
    return arguments(config, run, *RUN)[1:]


def test_one_node_and_several_nodes_give_the_same_training(config_file: Path, tmp_path: Path) -> None:
    """One process with accumulation 2; two processes on a node; one process on each of two "nodes"."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    nodes = {"NNODES": "2", "NPROC": "1", "MASTER": "127.0.0.1", "PORT": port}
    started = [
        start("one_gpu.sh", *words(config_file, tmp_path / "one")),
        start("one_node.sh", *words(config_file, tmp_path / "node"), NPROC="2"),
        *(
            start("many_nodes.sh", *words(config_file, tmp_path / "nodes"), NODE_RANK=str(rank), **nodes)
            for rank in range(2)
        ),
    ]
    for process in started:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
    one, node, several = (results(tmp_path / name) for name in ("one", "node", "nodes"))
    assert len(one) > 3
    assert node == several
    losses = [[record["loss"] for record in run if record["kind"] == "train"] for run in (one, node)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("script", ["one_gpu.sh", "one_node.sh", "many_nodes.sh"])
def test_scripts_without_a_configuration_print_their_usage(script: str) -> None:
    process = start(script)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"bash launch/{script} configs/" in out


def test_many_nodes_reports_missing_variables() -> None:
    process = start("many_nodes.sh", "configs/demo.yaml", NNODES="2")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "set NODE_RANK MASTER" in out


def test_step_benchmark(program: Program, balls: Path, config_file: Path, tmp_path: Path) -> None:
    """The result has all loops; the measured values are not tested."""
    script = REPOSITORY / "profiling" / "benchmark_step.py"
    options = ("--config", config_file, "--data", balls, "--steps", 2, "--json", tmp_path / "result.json")
    ended = program.fresh(script, *options, "train.precision=fp32").wait().expect(0)
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["median_ms"]) == {"engine", "bare", "bare without clipping"}
    assert all(value > 0 for value in (*result["median_ms"].values(), *result["engine_over"].values()))
    assert "| engine " in ended.out


@pytest.mark.long
def test_benchmark_against_other_recipes(program: Program, balls: Path, config_file: Path, tmp_path: Path) -> None:
    """All cases of one network, against the recipes that need no further packages."""
    script = REPOSITORY / "profiling" / "benchmark.py"
    options = ("--config", config_file, "--data", balls, "--networks", "unet", "--recipes", "thesis", "monai_fast")
    cases = ("data", "step", "epoch", "validation", "checkpoint", "start", "ranges")
    words = (*options, "--turns", 1, "--json", tmp_path / "result.json", "--cases", *cases)
    ended = program.fresh(script, *words).wait(300).expect(0)
    measured = json.loads((tmp_path / "result.json").read_text())["networks"]["unet"]["cases"]
    assert set(measured) == set(cases)
    assert set(measured["epoch"]["median_s"]) == {"fusionseg", "as configured", "bare", "thesis", "monai_fast"}
    for case in measured.values():
        assert all(value > 0 for value in (*case["median_s"].values(), *case["ratio"].values()))
    assert "| monai_fast " in ended.out


@pytest.mark.long
def test_gpu_checks_script_on_a_cpu(tmp_path: Path) -> None:
    """This takes minutes. On a CPU it only shows that the script works."""
    environ = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", REPOSITORY / "profiling" / "gpu_checks.sh", tmp_path / "checks", "--device", "cpu"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout
    table = (tmp_path / "checks" / "table.md").read_text()
    assert all(text in table for text in ("fusionseg / recipe", "backward", '"status": "completed"', "| case", "MFU"))


@pytest.mark.long
def test_demonstration(tmp_path: Path) -> None:
    """This takes minutes: all commands on synthetic data, up to a useful Dice."""
    process = start("demo.sh", str(tmp_path / "demo"), OMP_NUM_THREADS="2")
    out, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, out
    run = tmp_path / "demo" / "runs" / "demo"
    assert max(record["dice"] for record in records(run, "val")) >= 0.70
    assert (run / "evaluation" / "best_and_worst.png").stat().st_size > 10_000
    assert len(list((tmp_path / "demo" / "masks").glob("*.nii.gz"))) == 1
