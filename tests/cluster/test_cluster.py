"""Cluster profiles, and the batch scripts that follow from them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fusionseg.cluster.profile import load_cluster
from fusionseg.cluster.submission import decide_submissions
from fusionseg.cluster.submit import sbatch_text
from fusionseg.cluster.sweep import Sweep, load_sweep
from fusionseg.config import dump_config
from fusionseg.utils.errors import UserError

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
PROFILES = sorted((ROOT / "slurm/clusters").glob("*.yaml"))
SLURM_PROFILES = [file for file in PROFILES if load_cluster(file).cluster == "slurm"]


@pytest.mark.parametrize("file", SLURM_PROFILES, ids=lambda file: file.stem)
def test_batch_scripts_are_the_golden_ones(file: Path) -> None:
    """After an intended change: FUSIONSEG_WRITE_GOLDEN=1 pytest tests/cluster/test_cluster.py; read the difference."""
    sweep = Sweep(Path("table2.yaml"), Path("/scratch/runs/table2"), [])
    text = sbatch_text(sweep, load_cluster(file), num_runs=24).replace(sys.executable, "PYTHON")
    golden = GOLDEN / f"{file.stem}.sh"
    if os.environ.get("FUSIONSEG_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_single_run_is_no_array() -> None:
    sweep = Sweep(Path("table2.yaml"), Path("/scratch/runs/table2"), [])
    text = sbatch_text(sweep, load_cluster(ROOT / "slurm/clusters/t4.yaml"), num_runs=1)
    assert "--array" not in text
    assert "%j_0_log.out" in text


@pytest.mark.parametrize("name", ["my runs #2", "it's", 'a "b"', "$HOME `id` $(id)", "Größe; rm -rf *", "~", "a&b|c>d"])
def test_a_batch_script_means_the_folder_as_it_is_called(name: str) -> None:
    folder = Path("/scratch") / name / "table2"
    text = sbatch_text(Sweep(Path("table2.yaml"), folder, []), load_cluster(SLURM_PROFILES[0]), num_runs=2)
    logs = f"{folder}/jobs/%A_%a_"
    options = [shlex.split(line, comments=False) for line in text.splitlines() if line.startswith("#SBATCH")]
    assert ["#SBATCH", f"--output={logs}0_log.out"] in options
    (started,) = [shlex.split(line) for line in text.splitlines() if line.startswith("srun ")]
    assert f"{logs}%t_log.out" in started and started[-1] == f"{folder}/jobs"
    (mark,) = [line for line in text.splitlines() if "requeue-" in line]
    assert shlex.split(mark)[2] == f"{folder}/jobs/requeue-$job"
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "said"), [("a%b", "%"), ("%j", "%"), ("a\\b", "a backslash"), ("a\nb", "a control character")]
)
def test_a_folder_in_whose_name_slurm_puts_numbers_is_refused(
    tmp_path: Path, balls: Path, tiny_config, name: str, said: str
) -> None:
    (tmp_path / "base.yaml").write_text(dump_config(tiny_config(balls, tmp_path / name)))
    (tmp_path / "sweep.yaml").write_text("name: s\nbase: base.yaml\ngrid: {seed: [0, 1]}\n")
    sweep = load_sweep(tmp_path / "sweep.yaml")
    assert sweep.folder == tmp_path / name / "s"
    with pytest.raises(UserError, match=rf"output: .* holds {said}, and SLURM would write the jobs' logs elsewhere"):
        decide_submissions(sweep, load_cluster(SLURM_PROFILES[0]))
    (tmp_path / "here.yaml").write_text("cluster: local\n")
    assert len(decide_submissions(sweep, load_cluster(tmp_path / "here.yaml"))) == 2
    assert not (tmp_path / name).exists()


def test_every_golden_text_has_its_profile() -> None:
    assert {file.stem for file in GOLDEN.glob("*.sh")} == {file.stem for file in SLURM_PROFILES}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("partitoin=x", "partitoin (command line: partitoin=x): unknown key; did you mean partition?"),
        ("time=24h", "time (x: expected [days-]hours:minutes:seconds, such as 2-12:00:00, got '24h'"),
        ("time=90", "time (command line: time=90): expected a string"),
        ("nodes=0", "nodes (command line: nodes=0): expected a value of at least 1, got 0"),
        ("launcher=mpirun", "launcher (command line: launcher=mpirun): unknown value 'mpirun'"),
        ("tasks_per_node=3", "tasks_per_node (command line: tasks_per_node=3): 3 ranks on 1 GPUs"),
        ("gpus_per_node=0", "gpu_type ("),
        ("gpu_type=a 100", "gpu_type (command line: gpu_type=a 100): expected a string that matches"),
        ("signal_s=90000", "signal_s (command line: signal_s=90000): 90000 s are not below the time limit"),
        ("sbatch={--mem: 3}", "sbatch (command line: sbatch={--mem: 3}): --mem: write it without dashes: mem"),
        ("sbatch={time: 3}", "sbatch (command line: sbatch={time: 3}): time is set by time: remove it"),
        ("sbatch={cpus_per_task: 3}", "sbatch (command line: sbatch={cpus_per_task: 3}): cpus_per_task is set by"),
        ("sbatch={exclusive: false}", "sbatch (x: exclusive is false: remove"),
        ("sbatch={mem-per-gpu: 4G}", "sbatch (x: mem-per-gpu is set by memory_gb_per_task"),
        ("time='1:75:00'", "time (x: expected [days-]hours:minutes:seconds, such as 2-12:00:00, got '1:75:00'"),
        ("environment={A-B: x}", "environment (command line: environment={A-B: x}): 'A-B' is no name of a variable"),
        ("environment={A: 1}", "environment.A (command line: environment={A: 1}): expected a string, got 1"),
        ("setup=module load x", "setup (command line: setup=module load x): "),
        ("memory_gb_per_task=0", "memory_gb_per_task (command line: memory_gb_per_task=0): expected a value above 0"),
        ("account=", "account"),
        ("cluster=local", "partition (in the file: has no effect on a local cluster"),
    ],
)
def test_what_can_be_wrong_in_a_profile(override: str, expected: str) -> None:
    if override == "account=":  # null is a value: no account
        assert load_cluster(ROOT / "slurm/clusters/t4.yaml", [override]).account is None
        return
    with pytest.raises(UserError) as caught:
        load_cluster(ROOT / "slurm/clusters/t4.yaml", [override])
    key = expected.split(" (")[0]
    assert any(problem.startswith(key) for problem in caught.value.problems), caught.value.problems
    if expected.endswith("("):
        return
    assert any(expected.split(": ", 1)[-1] in problem for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("time", "seconds"), [("00:15:00", 900), ("24:00:00", 86400), ("2-01:00:01", 2 * 86400 + 3601)]
)
def test_time_limits(time: str, seconds: int) -> None:
    assert load_cluster(ROOT / "slurm/clusters/t4.yaml", [f"time='{time}'"]).time_s == seconds
