"""The scaling model: cases computed by hand, limits, random experiments, and its command line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import inf, pi, sqrt
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fusionseg.config import RunConfig, dump_config
from fusionseg.performance.goodput import best_interval_s, daly_interval_s, goodput, young_interval_s
from fusionseg.performance.scaling_check import SIZES, compare
from fusionseg.performance.scaling_inputs import PRESETS, default_reliability, workload_of_run
from fusionseg.performance.scaling_model import (
    Link,
    Network,
    Reliability,
    Workload,
    all_reduce_s,
    buckets,
    expected_slowest,
    exposed_s,
    fit_link,
    possible_ranks,
    scale,
    step_time,
)
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import write_json, write_text

SCRIPT = Path(__file__).parents[2] / "profiling" / "scaling.py"
NO_COST = Network(8, Link(inf, 0.0), Link(inf, 0.0))
WORK = Workload(micro_batch_s=0.3, gradient_bytes=100e6)
SAFE = Reliability(node_mtbf_s=inf, restart_s=0.0, checkpoint_s=1.0)
MINUTE, HOUR = 60.0, 3600.0


# -- communication ---------------------------------------------------------------------------------------------------


def test_a_ring_by_hand() -> None:
    """Four GPUs of one node, 8 bytes: six messages of 2 bytes, each 3 s on the way and 2 s long."""
    network = Network(4, Link(bytes_per_s=1.0, latency_s=3.0), Link(1e-9, 1e9), start_s=0.5)
    assert all_reduce_s(8, 4, network) == pytest.approx(0.5 + 6 * (3 + 2))


@pytest.mark.parametrize(
    ("algorithm", "seconds"),
    [
        # 2 nodes of 2: 6 messages of 2 bytes at 1 byte/s; the way leads over 4 inner links (1 s) and 2 outer ones (5 s)
        ("ring", 6 * 2 / 1 + 4 * 1 + 2 * 5),
        # inside 2 messages of 4 bytes at 4 bytes/s; between 2 messages of 4 bytes at 1 byte/s
        ("hierarchical", 2 * (1 + 4 / 4) + 2 * (5 + 4 / 1)),
        # inside the same; between up and down one level, all 8 bytes
        ("tree", 2 * (1 + 4 / 4) + 2 * (1 * 5 + 8 / 1)),
        ("best", 22.0),
    ],
)
def test_two_nodes_by_hand(algorithm: str, seconds: float) -> None:
    network = Network(2, Link(4.0, 1.0), Link(1.0, 5.0))
    assert all_reduce_s(8, 4, network, algorithm) == pytest.approx(seconds)


def test_one_gpu_has_nobody_to_talk_to() -> None:
    step = step_time(replace(WORK, spread=0.5), 1, 3, Network(8, Link(1.0, 1.0), Link(1.0, 1.0), 1.0))
    assert step.total_s == pytest.approx(3 * WORK.micro_batch_s)
    assert step.all_reduce_s == step.exposed_s == step.straggling_s == 0


@pytest.mark.parametrize("ranks", [2, 8, 9, 64, 4096])
def test_a_network_without_bounds_costs_nothing(ranks: int) -> None:
    assert scale(WORK, NO_COST, SAFE, ranks).efficiency == pytest.approx(1)


def test_latency_grows_with_the_ring_and_not_with_the_tree() -> None:
    network = Network(1, Link(inf, 0.0), Link(inf, 1.0))
    assert all_reduce_s(4, 1024, network, "ring") == pytest.approx(2 * 1023)
    assert all_reduce_s(4, 1024, network, "tree") == pytest.approx(2 * 10)
    assert all_reduce_s(4, 1024, network, "best") == pytest.approx(2 * 10)


def test_the_fitted_link_is_the_one_that_took_the_times() -> None:
    link = Link(2e9, 30e-6)
    sizes = (4.0, 1e6, 16e6)
    fitted = fit_link(sizes, [all_reduce_s(size, 4, Network(4, link, link)) for size in sizes], 4)
    assert fitted.bytes_per_s == pytest.approx(link.bytes_per_s)
    assert fitted.latency_s == pytest.approx(link.latency_s)


# -- overlap ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "overlap", "exposed"),
    [
        ((3.0, 4.0), 0.0, 7.0),
        ((3.0, 4.0), 1.0, 4.0),  # ready at 5, sent by 8; ready at 10, sent by 14
        ((3.0, 4.0), 0.5, 5.5),  # at 8 only 6.5 s are done, the rest by 11.5
        ((8.0, 1.0), 1.0, 4.0),  # the second waits for the first, until 13
        ((0.0, 0.0), 1.0, 0.0),
    ],
)
def test_what_the_backward_pass_hides(seconds: tuple[float, float], overlap: float, exposed: float) -> None:
    """A backward pass of 10 s whose gradients go in two equal buckets."""
    assert exposed_s(10.0, (1.0, 1.0), seconds, overlap) == pytest.approx(exposed)


def test_without_overlap_all_of_it_is_exposed() -> None:
    network = Network(8, Link(1e9, 1e-5), Link(1e8, 1e-4))
    step = step_time(replace(WORK, overlap=0.0), 64, 1, network)
    assert step.exposed_s == pytest.approx(step.all_reduce_s)
    assert step_time(WORK, 64, 1, network).exposed_s < step.exposed_s


def test_buckets_hold_all_gradients_the_first_is_small() -> None:
    assert buckets(60 << 20, 25 << 20) == [1 << 20, 25 << 20, 25 << 20, 9 << 20]
    assert buckets(100.0, 25 << 20) == [100.0]


# -- stragglers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["normal", "lognormal"])
@pytest.mark.parametrize(("ranks", "spread"), [(2, 0.3), (16, 0.1), (256, 0.5)])
def test_the_slowest_of_many(ranks: int, spread: float, distribution: str) -> None:
    """Against draws."""
    random = np.random.default_rng(1)
    shape = (20000, ranks)
    if distribution == "normal":
        times = random.normal(1, spread, shape)
    else:
        s2 = np.log1p(spread**2)
        times = random.lognormal(-s2 / 2, sqrt(s2), shape)
    slowest = times.max(axis=1)
    error = slowest.std() / sqrt(len(slowest))
    assert expected_slowest(ranks, spread, distribution) == pytest.approx(slowest.mean(), abs=5 * error)


def test_the_slowest_of_two_in_closed_form() -> None:
    assert expected_slowest(2, 0.2, "normal") == pytest.approx(1 + 0.2 / sqrt(pi), rel=1e-9)


def test_accumulation_evens_the_ranks_out() -> None:
    work = replace(WORK, spread=0.2)
    shares = [
        step.straggling_s / step.compute_s for step in (step_time(work, 64, count, NO_COST) for count in (1, 4, 16))
    ]
    assert shares == sorted(shares, reverse=True) and shares[2] < 0.3 * shares[0]


# -- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mtbf_s", "minutes"), [(24 * HOUR, 117), (6 * HOUR, 57), (15 * MINUTE, 9.1)])
def test_the_intervals_of_dalys_paper(mtbf_s: float, minutes: float) -> None:
    """Figures 3 to 5 of Daly (2006): checkpoints of 5 minutes."""
    assert daly_interval_s(5 * MINUTE, mtbf_s) / MINUTE == pytest.approx(minutes, rel=0.01)
    assert best_interval_s(5 * MINUTE, mtbf_s) / MINUTE == pytest.approx(minutes, rel=0.01)


@pytest.mark.parametrize("checkpoint_s", [1e-4, 1.0, 60.0, 2000.0])
def test_the_best_interval_is_a_stationary_point(checkpoint_s: float) -> None:
    mtbf_s = HOUR

    def share(interval_s: float) -> float:
        return goodput(interval_s, checkpoint_s=checkpoint_s, mtbf_s=mtbf_s, restart_s=120)

    best = best_interval_s(checkpoint_s, mtbf_s)
    slope = (share(best * 1.001) - share(best * 0.999)) / 0.002
    beside = (share(best * 2) - share(best * 1.998)) / 0.001
    assert abs(slope) < 0.01 * abs(beside)
    assert share(best) > max(share(best / 2), share(best * 2))
    assert share(best) >= share(daly_interval_s(checkpoint_s, mtbf_s)) - 1e-14  # rounding


def test_rare_failures_bring_the_estimates_together() -> None:
    daly, best = daly_interval_s(1.0, 1e9), best_interval_s(1.0, 1e9)
    assert best == pytest.approx(daly, rel=1e-4) == pytest.approx(young_interval_s(1.0, 1e9), rel=1e-3)


def test_goodput_against_a_run_with_random_failures() -> None:
    """Stretches of training and saving that are repeated until none fails, a restart after each failure."""
    interval_s, checkpoint_s, mtbf_s, restart_s = 30.0, 5.0, 60.0, 10.0
    random = np.random.default_rng(3)
    wall, stretches = 0.0, 20000
    for _ in range(stretches):
        due = interval_s + checkpoint_s
        while (lasts := random.exponential(mtbf_s)) < due:
            wall, due = wall + lasts, restart_s + interval_s + checkpoint_s
        wall += due
    measured = interval_s * stretches / wall
    by_model = goodput(interval_s, checkpoint_s=checkpoint_s, mtbf_s=mtbf_s, restart_s=restart_s)
    # Daly lets the restart be part of what a failure repeats, as here, and counts the last one in e^(R/M).
    assert by_model == pytest.approx(measured, rel=0.02)


def test_the_ends_of_goodput() -> None:
    assert goodput(10, checkpoint_s=10, mtbf_s=inf, restart_s=5) == 0.5
    assert goodput(inf, checkpoint_s=10, mtbf_s=inf, restart_s=5) == 1
    assert goodput(inf, checkpoint_s=10, mtbf_s=1e9, restart_s=5) == 0
    assert goodput(1e6, checkpoint_s=10, mtbf_s=1.0, restart_s=5) == 0  # and does not overflow


# -- both together ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("global_batch", [None, 4096])
def test_more_gpus_are_never_more_efficient(name: str, global_batch: int | None) -> None:
    preset = PRESETS[name]
    work = preset.workload
    rows = [
        scale(work, preset.reachable, default_reliability(work.gradient_bytes), 2**power, global_batch=global_batch)
        for power in range(13)
    ]
    efficiency = [row.efficiency for row in rows]
    assert efficiency[0] == pytest.approx(1)
    assert all(more <= fewer + 1e-12 for fewer, more in pairwise(efficiency))
    assert all(0 < row.goodput < 1 for row in rows)
    assert [row.goodput for row in rows] == sorted((row.goodput for row in rows), reverse=True)


def test_a_fixed_batch_ends_where_it_cannot_be_dealt() -> None:
    counts = [1, 2, 3, 4, 8, 16]
    assert possible_ranks(counts, 2, 24) == [1, 2, 3, 4]
    assert possible_ranks(counts, 2, None) == counts


def test_a_fixed_batch_is_the_same_on_all() -> None:
    rows = [scale(WORK, NO_COST, SAFE, ranks, global_batch=8) for ranks in (1, 4, 8)]
    assert [row.accumulation_steps for row in rows] == [8, 2, 1]
    assert {row.global_batch for row in rows} == {8}
    assert rows[2].samples_per_s == pytest.approx(8 * rows[0].samples_per_s)


# -- the check -------------------------------------------------------------------------------------------------------


def test_the_check_finds_what_was_put_in() -> None:
    """Two ranks of 1 s forward, 2 s backward, 0.5 s optimizer; the all-reduce takes 1 s + 1 s for each 16 MiB."""
    turns = 10
    reduce = np.array([[[1 + size / (16 << 20) for size in SIZES]] * turns] * 2)
    steps = np.array([[[1.0, 2.0, 0.5, 6.5]] * turns] * 2)
    steps[0, 0] *= 100  # the machine did something else
    found = compare(2, steps, reduce, gradient_bytes=1 << 20)
    assert found.slowest == found.expected_slowest == 1
    # one bucket of 1 MiB: 1 + 1/16; the loss: 1
    assert found.added.total_s == pytest.approx(3.5 + 2 + 1 / 16, rel=1e-3)
    assert found.error == pytest.approx((5.5 + 1 / 16) / 6.5 - 1, rel=1e-2)


@pytest.mark.long
def test_the_check_runs_with_two_processes(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    command = [sys.executable, str(SCRIPT), "--measure", "--processes", "2", "--turns", "3", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert row["processes"] == 2
    assert row["link"]["bytes_per_s"] > 1e6 and 0 <= row["link"]["latency_s"] < 0.1
    assert 0 < row["hidden_s"] <= row["added_s"]
    assert row["error"] == pytest.approx(row["added_s"] / row["measured_s"] - 1)
    assert "| 2 " in done.stdout


# -- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Call = Callable[..., int]


@pytest.fixture
def call(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call("--preset", ...)`: the exit status of the script with these words."""

    def start(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
        return int(script.main())

    return start


def test_all_presets_in_one_table_and_figure(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figure = tmp_path / "result.json", tmp_path / "figure.png"
    assert call("--preset", *PRESETS, "--json", out, "--figure", figure) == 0
    clusters = json.loads(out.read_text())["clusters"]
    assert [cluster["preset"] for cluster in clusters] == list(PRESETS)
    assert all([row["ranks"] for row in cluster["rows"]] == [2**p for p in range(13)] for cluster in clusters)
    assert figure.read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    assert text.count("| 4096 ") == 2 * len(PRESETS)  # GPUs, and the global batch


def test_the_command_line_wins_over_the_preset(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    words = ("--step-s", 0.25, "--gradient-mb", 10, "--between-us", 7, "--gpus-per-node", 2, "--interval-s", 60)
    assert call(*words, "--gpus", 1, 4, "--node-mtbf-h", "inf", "--json", out) == 0
    (cluster,) = json.loads(out.read_text())["clusters"]
    assert cluster["workload"]["micro_batch_s"] == 0.25
    assert cluster["workload"]["gradient_bytes"] == 10e6
    assert cluster["network"]["between"]["latency_s"] == pytest.approx(7e-6)
    assert [row["nodes"] for row in cluster["rows"]] == [1, 2]
    assert {row["interval_s"] for row in cluster["rows"]} == {60}


def test_everything_impossible_is_said_at_once(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--step-s", 0, "--overlap", 1.5, "--between-gbs", "nan", "--restart-s", -1, "--gpus", 0)
    assert call(*words, "--global-batch", 5, "--micro-batch", 2, "--accumulate", 3) == 2
    said = capsys.readouterr().err
    wanted = (
        "--step-s",
        "--overlap",
        "--between-gbs",
        "--restart-s",
        "--gpus",
        "--global-batch",
        "--accumulation-steps",
    )
    assert all(f"{name}: " in said for name in wanted)
    assert len(said.splitlines()) == len(wanted)


def test_the_check_draws_nothing(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--measure", "--turns", 1, "--figure", tmp_path / "figure.png") == 2
    said = capsys.readouterr().err
    assert "--rounds: " in said and "got 1" in said and "--figure: " in said


def test_a_batch_that_none_of_the_numbers_can_deal(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--global-batch", 3, "--gpus", 2, 4) == 2
    said = capsys.readouterr().err
    assert "--global-batch: 3" in said and "[2, 4] GPUs" in said


# -- from a run ------------------------------------------------------------------------------------------------------


def write_run(folder: Path, config: RunConfig, times: list[float], world_size: int = 1) -> Path:
    folder.mkdir()
    write_text(folder / "config.yaml", dump_config(config))
    write_json(folder / "environment.json", {"parameters": 1000, "world_size": world_size})
    records = [{"kind": "train", "step": step, "step_s": seconds} for step, seconds in enumerate(times)]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_the_workload_of_a_run(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> None:
    config = tiny_config(None, tmp_path, train={"global_batch": 8, "micro_batch": 2}, log={"every": 25})
    run = write_run(tmp_path / "run", config, [9.0, 0.9, 1.0, 1.1])
    work = workload_of_run(run)
    assert work.micro_batch_s == pytest.approx(1.0 / 4)
    assert work.gradient_bytes == 4000 and work.micro_batch == 2
    assert work.spread == pytest.approx(0.1 * 5 * 2)  # records of 25 steps of 4 micro-batches


def test_runs_that_say_too_little(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> None:
    config = tiny_config(None, tmp_path)
    with pytest.raises(UserError) as error:
        workload_of_run(write_run(tmp_path / "run", config, [1.0, 1.0], world_size=4))
    assert len(error.value.problems) == 2
    assert "got 4" in error.value.problems[0] and "got 2" in error.value.problems[1]
    with pytest.raises(UserError, match=r"config\.yaml"):
        workload_of_run(tmp_path / "none")


def test_from_run_on_the_command_line(call: Call, tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> None:
    run = write_run(tmp_path / "run", tiny_config(None, tmp_path), [1.0] * 5)
    out = tmp_path / "result.json"
    assert call("--from-run", run, "--gpus", 1, 2, "--json", out) == 0
    assert json.loads(out.read_text())["clusters"][0]["rows"][0]["step"]["total_s"] == pytest.approx(
        0.5
    )  # of 2 micro-batches
    assert call("--from-run", run, "--step-s", 1) == 2
