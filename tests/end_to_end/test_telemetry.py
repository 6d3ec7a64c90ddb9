"""Time of a run: NVTX ranges as a tool receives them, seconds of each phase, torch profiles."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from nvtx_tool import NvtxTool, Range

from end_to_end.conftest import Train, arguments
from end_to_end.runs import REPOSITORY, TRAIN, Program, rank_environments, records
from fusionseg.observability.ranges import PHASES

ACCUMULATED = ("train.steps=3", "train.global_batch=4", "train.micro_batch=2", "validate.every=3", "checkpoint.every=3")
# `python -m fusionseg.train` with a loss that raises an exception in the second micro-batch of the second step.
FAILING = """
import sys
from fusionseg.train import main
from fusionseg.training.tasks.named.segmentation import Segmentation

def build_failing(task):
    loss, calls = build(task), []
    def failing(output, target):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("the device is gone")
        return loss(output, target)
    return failing

build, Segmentation.build_loss = Segmentation.build_loss, build_failing
main(sys.argv[1:])
"""


def outline(ranges: list[Range]) -> list[tuple[str, int]]:
    return [(entry.name, entry.payload) for entry in ranges]


def test_nvtx_ranges_of_every_step(program: Program, config_file: Path, nvtx_tool: NvtxTool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = arguments(config_file, run, *ACCUMULATED, f"data.prepared={tmp_path / 'prepared'}")
    program.fresh("-m", TRAIN, *words, env=nvtx_tool.environ()).wait().expect(0)
    ranges = nvtx_tool.ranges()
    assert [entry.payload for entry in ranges if entry.name == "step"] == [0, 1, 2]
    for step in (entry for entry in ranges if entry.name == "step"):
        micro = [(name, k) for k in range(2) for name in ("data", "forward", "loss", "backward")]
        assert outline(step.inner) == [*micro, ("optimizer", 0)]
        assert [outline(entry.inner) for entry in step.inner if entry.name == "data"] == 2 * [[("augment", 0)]]
    others = [entry.name for entry in ranges if entry.depth == 0 and entry.name != "step"]
    assert set(others) == {"prepare", "cache", "log", "validate", "checkpoint"}
    assert others.count("log") == 3 and others.count("validate") == 1
    (prepare,) = (entry for entry in ranges if entry.name == "prepare")
    chain = ["load", "reorient", "resample", "crop", "normalise"]
    assert [entry.name for entry in prepare.inner] == 5 * chain

    (end,) = records(run, "end")
    assert set(end["phases_s"]) - {"other"} == {entry.name for entry in ranges} - set(chain) | {"start"}
    assert sum(end["phases_s"].values()) == pytest.approx(end["total_s"], abs=0.02)
    assert end["phases_s"]["other"] < 0.01 * end["total_s"]


def test_nvtx_ranges_of_the_modules(program: Program, config_file: Path, nvtx_tool: NvtxTool, tmp_path: Path) -> None:
    options = ("train.steps=1", "train.micro_batch=2", "profile.stages=true")
    process = program.fresh("-m", TRAIN, *arguments(config_file, tmp_path / "run", *options), env=nvtx_tool.environ())
    process.wait().expect(0)
    (step,) = (entry for entry in nvtx_tool.ranges() if entry.name == "step")
    (forward,) = (entry for entry in step.inner if entry.name == "forward")
    (whole,) = forward.inner
    assert whole.name == "model" and [entry.name for entry in whole.inner] == ["model.0", "model.1", "model.2"]
    (end,) = records(tmp_path / "run", "end")
    assert set(end["phases_s"]) - {"other"} <= set(PHASES)


def test_ranges_are_closed_after_an_exception(
    program: Program, config_file: Path, nvtx_tool: NvtxTool, tmp_path: Path
) -> None:
    process = program.fresh(
        "-c", FAILING, *arguments(config_file, tmp_path / "run", *ACCUMULATED), env=nvtx_tool.environ()
    )
    assert "the device is gone" in process.wait().expect(1).err
    last = [entry for entry in nvtx_tool.ranges() if entry.name == "step"][-1]
    assert last.payload == 1
    micro = [(name, k) for k in range(2) for name in ("data", "forward", "loss", "backward")]
    assert outline(last.inner) == micro[:-1]
    (end,) = records(tmp_path / "run", "end")
    assert end["status"] == "failed" and sum(end["phases_s"].values()) == pytest.approx(end["total_s"], abs=0.02)


def test_allreduce_ranges(program: Program, config_file: Path, nvtx_tool: NvtxTool, tmp_path: Path) -> None:
    words = arguments(config_file, tmp_path / "run", *ACCUMULATED, "train.micro_batch=1")
    ranks = [
        program.fresh("-m", TRAIN, *words, env={**env, **nvtx_tool.environ(env["RANK"])})
        for env in rank_environments(2)
    ]
    for process in ranks:
        process.wait().expect(0)
    for rank in "01":
        steps = [entry for entry in nvtx_tool.ranges(rank) if entry.name == "step"]
        assert len(steps) == 3
        for step in steps:
            inside = [[part.name for part in entry.inner] for entry in step.inner if entry.name == "backward"]
            assert inside == [[], ["allreduce"]]  # with the last micro-batch only
            assert [part.name for part in step.inner[-1].inner] == ["allreduce"]  # of the loss, in `optimizer`


def test_torch_profile_of_the_configured_steps(train: Train, program: Program, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, "train.steps=5", "train.micro_batch=2", "profile.steps=[2, 4]").expect(0)
    with gzip.open(run / "profile/trace_rank0.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert {name: names.count(name) for name in ("step", "forward", "backward", "optimizer")} == {
        "step": 2, "forward": 2, "backward": 2, "optimizer": 2,
    }  # fmt: skip
    assert any(event["name"].startswith("aten::conv") for event in events)
    assert len(records(run, "train")) == 5
    summary = json.loads((run / "profile/summary_rank0.json").read_text())
    assert summary["steps"]["count"] == 2
    assert {"forward", "backward", "optimizer"} <= set(summary["phases"])
    done = program.fresh(REPOSITORY / "profiling/report.py", run).wait().expect(0)
    assert "backward" in done.out and (run / "profile/report.png").exists()


def test_profile_settings_do_not_prevent_a_resume(train: Train, tmp_path: Path) -> None:
    train(tmp_path / "run", "train.steps=4").expect(0)
    again = train(tmp_path / "run", "train.steps=4", "profile={steps: [0, 2], stages: true}").expect(0)
    assert "this run has finished (completed at step 4)" in again.err


def test_seconds_of_the_phases_are_added_over_the_starts_of_a_run(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, "train.steps=4").expect(0)
    (first,) = records(run, "end")
    for name in ("step_00000004.pt", "last.pt"):  # as if it had been killed in step 3
        (run / "checkpoints" / name).unlink()
    train(run, "train.steps=4").expect(0)
    (second,) = records(run, "end")
    assert second["phases_s"]["start"] > first["phases_s"]["start"]
    assert sum(second["phases_s"].values()) == pytest.approx(second["total_s"], abs=0.02)
