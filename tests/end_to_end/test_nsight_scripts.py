"""profiling/nsys.sh, ncu.sh and their batch jobs; stand-ins for NVIDIA's tools record their calls."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from end_to_end.runs import REPOSITORY

PROFILING = REPOSITORY / "profiling"
HOST = platform.node().split(".")[0]
# A stand-in for a tool: it writes its arguments to a file of the rank, then runs the program from $PROGRAM on.
TOOL = """#!/bin/bash
if [ "$1" = --help ]; then echo "  ${HELP---nvtx-push-pop-scope arg (=thread)}"; exit; fi
rank=${RANK:-${SLURM_PROCID:-${OMPI_COMM_WORLD_RANK:-0}}}
printf '%s\\n' "$@" > "$STAND_IN/$(basename "$0")_rank$rank"
while [ "$1" != "$PROGRAM" ]; do shift; done
exec "$@"
"""
# A stand-in for the training: it writes down its arguments.
PROGRAM = """#!/bin/bash
rank=${RANK:-${SLURM_PROCID:-${OMPI_COMM_WORLD_RANK:-0}}}
printf '%s\\n' "$@" >> "$STAND_IN/program_rank$rank"
exit ${PROGRAM_STATUS:-0}
"""
# A stand-in for srun: two tasks, one after the other.
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$STAND_IN/srun"
while [[ $1 == --* ]]; do shift; done
for rank in 0 1; do SLURM_PROCID=$rank "$@" || exit $?; done
"""


class Place:
    """A folder with the stand-ins and their records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name, text in (("nsys", TOOL), ("ncu", TOOL), ("srun", SRUN), ("training", PROGRAM)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.program = str(folder / "bin/training")

    def __call__(
        self, script: str, *arguments: str, status: int = 0, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of profiling/ in the folder; only `environ` sets a rank."""
        return self.run("bash", str(PROFILING / script), *arguments, status=status, **environ)

    def run(self, *command: str, status: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_")) and k != "RANK"}
        kept |= {"PATH": f"{self.folder / 'bin'}:{kept['PATH']}", "STAND_IN": str(self.folder), "PROGRAM": self.program}
        done = subprocess.run(command, capture_output=True, text=True, env=kept | environ, cwd=self.folder, timeout=120)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def said(self, name: str) -> list[str] | None:
        """Return the arguments of a call; None if there was no call."""
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else None


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_nsys_of_a_single_process(place: Place) -> None:
    words = ["--config", "a file.yaml", "profile.steps=[100, 110]"]
    place("nsys.sh", place.program, *words)
    assert place.said("program_rank0") == words
    assert place.said("nsys_rank0") == [
        "profile", "--trace=cuda,nvtx", "--sample=none", "--cpuctxsw=none", "--export=sqlite", "--force-overwrite=true",
        f"--output=profile/nsys_rank0_{HOST}", "--capture-range=cudaProfilerApi", "--capture-range-end=stop",
        place.program, *words,
    ]  # fmt: skip
    assert (place.folder / "profile").is_dir()


def test_options_of_nsys(place: Place) -> None:
    options = {"NSYS_OPTIONS": "--gpu-metrics-devices=0 --stats=true", "TRACE": "cuda,nvtx,osrt", "OUTPUT": "a b/c"}
    place("nsys.sh", place.program, CAPTURE="all", **options)
    called = place.said("nsys_rank0") or []
    assert {"--trace=cuda,nvtx,osrt", f"--output=a b/c/nsys_rank0_{HOST}"} < set(called)
    assert called[-3:] == ["--gpu-metrics-devices=0", "--stats=true", place.program]
    assert not [word for word in called if word.startswith("--capture-range")]


def test_ncu_has_a_filter_for_each_phase(place: Place) -> None:
    place("ncu.sh", place.program, "data.root=x")
    assert place.said("ncu_rank0") == [
        "--set", "detailed", "--launch-skip", "0", "--launch-count", "50", "--kernel-name", "regex:^(?!nccl)",
        "--target-processes", "all", "--force-overwrite", "--export", f"profile/ncu_rank0_{HOST}",
        "--nvtx", "--nvtx-push-pop-scope", "process",
        "--nvtx-include", "fusionseg@forward/", "--nvtx-include", "fusionseg@backward/", "--profile-from-start", "off",
        place.program, "data.root=x",
    ]  # fmt: skip
    options = {"SET": "full", "KERNELS": "7", "SKIP": "3", "KERNEL_NAME": "regex:gemm", "NCU_OPTIONS": "--kill yes"}
    place("ncu.sh", place.program, PHASES="swinViT.layers1", CAPTURE="all", **options)
    called = " ".join(place.said("ncu_rank0") or [])
    assert called.startswith("--set full --launch-skip 3 --launch-count 7 --kernel-name regex:gemm ")
    assert called.count("--nvtx-include") == 1 and "--nvtx-include fusionseg@swinViT.layers1/ --kill yes" in called
    assert "--profile-from-start" not in called


def test_ncu_without_the_process_scope(place: Place) -> None:
    """Such as the ncu of CUDA 11.8."""
    assert "no kernels of backward" in place("ncu.sh", place.program, HELP="").stderr
    called = place.said("ncu_rank0") or []
    assert "--nvtx" in called and "--nvtx-push-pop-scope" not in called
    assert "backward" not in place("ncu.sh", place.program).stderr


@pytest.mark.parametrize("tool", ["nsys", "ncu"])
@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"])
def test_profiled_ranks(place: Place, tool: str, variable: str) -> None:
    def profiled(rank: int, **ranks: str) -> bool:
        place(f"{tool}.sh", place.program, **{variable: str(rank)}, **ranks)
        assert place.said(f"program_rank{rank}") is not None
        found = place.said(f"{tool}_rank{rank}")
        (place.folder / f"{tool}_rank{rank}").unlink(missing_ok=True)
        return found is not None and any(word.endswith(f"{tool}_rank{rank}_{HOST}") for word in found)

    assert [profiled(rank) for rank in (0, 1, 10)] == [True, False, False]
    assert [profiled(rank, RANKS="1,3") for rank in (0, 1, 3, 13)] == [False, True, True, False]
    assert [profiled(rank, RANKS="all") for rank in (0, 12)] == [True, True]


def test_rank_of_torchrun_takes_precedence_over_srun(place: Place) -> None:
    place("nsys.sh", place.program, RANK="2", SLURM_PROCID="0")
    assert place.said("nsys_rank2") is None and place.said("program_rank2") is not None


@pytest.mark.parametrize("tool", ["nsys", "ncu"])
def test_missing_tool(place: Place, tool: str) -> None:
    nowhere = {"PATH": "/nowhere"}
    bash = "/bin/bash"
    done = place.run(bash, str(PROFILING / f"{tool}.sh"), place.program, status=2, **nowhere)
    assert done.stderr.startswith(f"{tool}.sh: {tool} is not on PATH; load or install Nsight")
    assert place.said("program_rank0") is None
    # Ranks that are not profiled need no tool. (Their program is found without PATH.)
    place.run(bash, str(PROFILING / f"{tool}.sh"), bash, "-c", "exit 5", status=5, RANK="1", **nowhere)


@pytest.mark.parametrize("tool", ["nsys", "ncu"])
def test_wrong_request(place: Place, tool: str) -> None:
    usage = place(f"{tool}.sh", status=2).stderr
    assert f"profiling/{tool}.sh python -m fusionseg.train" in usage and "set -euo" not in usage
    refused = place(f"{tool}.sh", place.program, status=2, RANKS="first").stderr
    assert "RANKS: " in refused and "got 'first'" in refused
    refused = place(f"{tool}.sh", place.program, status=2, CAPTURE="some").stderr
    assert "CAPTURE: " in refused and "expected steps or all, got 'some'" in refused
    assert place.said("program_rank0") is None


def test_script_has_the_exit_status_of_the_program(place: Place) -> None:
    for rank in ("0", "1"):
        place("nsys.sh", place.program, status=7, RANK=rank, PROGRAM_STATUS="7")


def test_under_torchrun(place: Place) -> None:
    """Two real processes run; one is profiled."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc_per_node=2")
    place.run(*torchrun, str(PROFILING / "nsys.sh"), place.program, "--config", "x.yaml")
    assert place.said("program_rank0") == place.said("program_rank1") == ["--config", "x.yaml"]
    assert place.said("nsys_rank0") is not None and place.said("nsys_rank1") is None


@pytest.mark.parametrize("tool", ["nsys", "ncu"])
def test_batch_jobs(place: Place, tool: str) -> None:
    environ = {"SLURM_SUBMIT_DIR": str(REPOSITORY), "PYTHON": place.program, "OUTPUT": "elsewhere"}
    run = place.folder / "runs/profiled"
    words = (str(run), "--config", "x.yaml", "data.root=/data/PARSE")
    place(f"{tool}.sbatch", *words, STEPS="30,40", RANKS="all", **environ)
    trained = [
        "-m", "fusionseg.train", *(["profile.stages=true"] if tool == "ncu" else []), "--config", "x.yaml",
        "data.root=/data/PARSE", f"output={run.parent}", "name=profiled", "profile.steps=[30,40]", "profile.with=nsys",
        "profile.ranks=all", "train.steps=42", "schedule.warmup=41",
    ]  # fmt: skip
    first, second = place.said("program_rank0") or [], place.said("program_rank1")
    assert second == trained and first[: len(trained)] == trained
    # Afterwards, outside of srun, the report is made from the files of nsys.
    assert first[len(trained) :] == (["profiling/report.py", str(run)] if tool == "nsys" else [])
    for rank in (0, 1):
        assert f"{run}/profile/{tool}_rank{rank}_{HOST}" in "\n".join(place.said(f"{tool}_rank{rank}") or [])
    (place.folder / "program_rank0").unlink()
    place(f"{tool}.sbatch", *words, status=3, PROGRAM_STATUS="3", **environ)
    said = place.said("program_rank0") or []  # a failed training has no report, and the second task is not started
    assert said[1] == "fusionseg.train" and "profiling/report.py" not in said
    assert "profile.ranks=main" in said
    assert "FOLDER --config FILE" in place(f"{tool}.sbatch", "folder", status=2, **environ).stderr
    environ["SLURM_SUBMIT_DIR"] = str(place.folder)
    assert "submit it from the repository" in place(f"{tool}.sbatch", *words, status=2, **environ).stderr
