"""profiling/count_operators.py: device operators of real training steps on a pretended GPU, against their budgets."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from fusionseg.performance.pretended_gpu.operator_count import launches

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None and "g++" not in os.environ.get("FUSIONSEG_REQUIRE", ""),
    reason="the library of the pretended GPU needs g++",
)


def count(*arguments: str | Path, timeout_s: float = 1200) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "profiling/count_operators.py"), *map(str, arguments)]
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s, env=environ)


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        ("view.default", False),
        ("empty_like.default", False),
        ("split.Tensor", False),
        ("add.Tensor", True),
        ("add_.Tensor", True),
        ("copy_.default", True),
        ("clone.default", True),
        ("_foreach_norm.Scalar", True),
    ],
)
def test_views_and_allocations_launch_nothing(name: str, counted: bool) -> None:
    packet, overload = name.split(".")
    assert launches(getattr(getattr(torch.ops.aten, packet), overload)) is counted


def test_steps_keep_their_budgets_and_a_wait_or_an_excess_is_reported(tmp_path: Path) -> None:
    rows = yaml.safe_load((REPOSITORY / "profiling/operator_budgets.yaml").read_text())["rows"]
    kept = [row for row in rows if row["config"].startswith("hippocampus")]
    too_many = {"config": "hippocampus_unet", "capability": "9.0", "budget": {"loss": 10, "optimizer": 1000}}
    waiting = {"config": "hippocampus_unet", "capability": "9.0", "settings": {"optim.name": "novograd"}}
    budgets = tmp_path / "budgets.yaml"
    failing = {"config": "hippocampus_unet", "capability": "7.5", "settings": {"train.precision": "bf16"}}
    budgets.write_text(yaml.safe_dump({"rows": [failing, *kept, too_many, waiting]}))
    done = count("--budgets", budgets, "--json", tmp_path / "counts.json")
    assert done.returncode == 1, done.stdout + done.stderr
    results = json.loads((tmp_path / "counts.json").read_text())["results"]
    assert "bf16 is not possible on this GPU" in results.pop(0)["problems"][0]
    problems = [result["problems"] for result in results]
    assert problems[: len(kept)] == [[]] * len(kept), "a step has more operators than its budget, or waits"
    assert problems[-2] == ["loss: 19 operators (expected at most 10)"]
    assert len(problems[-1]) == 1 and problems[-1][0].startswith("reads a value from the GPU")
    assert "novograd" in done.stdout.splitlines()[-1]
    for result in results[: len(kept)]:
        launched = result["launched"]
        assert set(launched) >= {"data", "forward", "loss", "backward", "optimizer"}
        assert launched["forward"]["convolution.default"] == launched["backward"]["convolution_backward.default"]
        rate = "tensor_lr" if "train.cuda_graph" in result["row"].get("settings", {}) else "default"
        assert launched["optimizer"][f"_fused_adamw_.{rate}"] == 1
    by_ranks = {
        (result["row"]["ranks"], *result["row"].get("settings", {}).values()): result["launched"]
        for result in results[: len(kept)]
        if "ranks" in result["row"]
    }
    # The gradients fit into one bucket. The loss tells all ranks whether the step is finite.
    for each in (by_ranks[2,], by_ranks[4,], by_ranks[2, True]):
        assert collectives(each) == {("backward", "all_reduce"): 1, ("allreduce", "all_reduce"): 1}
    divided = collectives(by_ranks[2, "fsdp"])
    # Each unit is gathered for both passes, that of the whole network for the forward pass alone. Each rank has a part
    # of the squares of the gradient norm, and the loss of its samples.
    units = divided["backward", "reduce_scatter"]
    assert units >= 5 and divided == {
        ("forward", "all_gather"): units,
        ("backward", "all_gather"): units - 1,
        ("backward", "reduce_scatter"): units,
        ("allreduce", "all_reduce"): 2,
    }


def collectives(launched: dict[str, dict[str, int]]) -> dict[tuple[str, str], int]:
    """The collective operations by phase and name."""
    return {
        (phase, name.split(".")[1]): count
        for phase, names in launched.items()
        for name, count in names.items()
        if name.startswith("collective.")
    }


def test_counted_rows_are_not_counted_again_unless_the_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "profiling")
    program = importlib.import_module("count_operators")
    rows = [{"config": name, "capability": "9.0"} for name in ("counted", "with_a_problem")]
    done = {"overrides": [], "operators": dict.fromkeys(program.PHASES, 7), "sum": 42, "launched": {}}
    results = [{"row": row, **done, "problems": problems} for row, problems in zip(rows, ([], ["waits"]), strict=True)]
    file = tmp_path / "counts.json"
    file.write_text(json.dumps({"code": program.code_hash(), "results": results}))

    # Without a pretended GPU and such configurations, a row that is counted again fails.
    first, second = program.count_rows(rows, [], tmp_path, file)
    assert first["sum"] == 42 and not first["problems"]
    assert second["problems"][0].startswith("fails")
    assert program.count_rows(rows[:1], ["seed=1"], tmp_path, file)[0]["problems"], "other settings are other rows"
    stored = json.loads(file.read_text())
    assert [result["sum"] for result in stored["results"] if not result["problems"]] == [42], "finished rows are kept"
    file.write_text(json.dumps({**stored, "code": "of another version"}))
    assert program.count_rows(rows[:1], [], tmp_path, file)[0]["problems"][0].startswith("fails")


@pytest.mark.long
def test_every_network_in_both_precisions() -> None:
    done = count("--networks", timeout_s=7200)
    assert done.returncode == 0, done.stdout + done.stderr
