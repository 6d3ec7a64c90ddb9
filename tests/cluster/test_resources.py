"""Runs of a sweep with resources of their own, and the job arrays that they are submitted in."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionseg.cluster.profile import ClusterConfig, load_cluster
from fusionseg.cluster.resources.arrays import plan_arrays, with_dependency
from fusionseg.cluster.resources.of_runs import with_resources
from fusionseg.cluster.submission import decide_submissions, submissions_table
from fusionseg.cluster.sweep import Sweep, SweepRun, load_sweep
from fusionseg.config import RunConfig, dump_config
from fusionseg.utils.errors import UserError

ROOT = Path(__file__).parents[2]
PROFILE = "{cluster: slurm, gpus_per_node: 0, cpus_per_task: 2, parallel: 4, partition: cpu}"
POINTS = """
set: {cluster.time: "08:00:00"}
points:
  - {name: small}
  - {name: large, cluster.nodes: 2, cluster.sbatch: {reservation: friday}}
grid: {seed: [0, 1]}
"""


@pytest.fixture
def open_sweep(tmp_path: Path, balls: Path, tiny_config: Callable[..., RunConfig]) -> Callable[..., Sweep]:
    """`open_sweep(text, *overrides, profile=...)`: a sweep with resources; overrides are for the profile."""
    (tmp_path / "base.yaml").write_text(dump_config(tiny_config(balls, tmp_path / "runs", train={"global_batch": 2})))
    (tmp_path / "here.yaml").write_text("{cluster: local}")
    (tmp_path / "big.yaml").write_text("{cluster: slurm, gpus_per_node: 2, partition: big, time: '2-00:00:00'}")

    def start(text: str, *overrides: str, profile: str = PROFILE) -> Sweep:
        (tmp_path / "sweep.yaml").write_text(f"name: s\nbase: base.yaml\n{text}")
        (tmp_path / "cluster.yaml").write_text(profile)
        cluster = load_cluster(tmp_path / "cluster.yaml", overrides)
        return with_resources(load_sweep(tmp_path / "sweep.yaml"), tmp_path / "cluster.yaml", cluster, overrides)

    return start


def problems(open_sweep: Callable[..., Sweep], text: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        open_sweep(text, *overrides)
    return caught.value.problems


def profiles(sweep: Sweep) -> dict[str, ClusterConfig]:
    return {run.config.name: run.cluster for run in sweep.runs if run.cluster}


def test_points_have_resources_of_their_own(open_sweep: Callable[..., Sweep]) -> None:
    found = profiles(open_sweep(POINTS))
    assert list(found) == ["small-seed0", "small-seed1", "large-seed0", "large-seed1"]
    assert [one.nodes for one in found.values()] == [1, 1, 2, 2]
    assert {one.time for one in found.values()} == {"08:00:00"}
    assert found["large-seed1"].sbatch == {"reservation": "friday"} and not found["small-seed0"].sbatch
    assert {(one.partition, one.cpus_per_task) for one in found.values()} == {("cpu", 2)}


def test_the_command_line_wins_over_set(open_sweep: Callable[..., Sweep]) -> None:
    assert {one.time for one in profiles(open_sweep(POINTS, "time='01:00:00'")).values()} == {"01:00:00"}


def test_a_point_names_another_profile(open_sweep: Callable[..., Sweep]) -> None:
    text = "points: [{name: a}, {name: b, cluster: big, cluster.nodes: 1}, {name: c, cluster: {nodes: 2}}]"
    sweep = open_sweep(text, "max_requeues=7")
    assert sweep.runs[0].cluster is None
    b, c = profiles(sweep).values()
    assert (b.partition, b.gpus_per_node, b.time, b.max_requeues) == ("big", 2, "2-00:00:00", 7)
    assert (c.partition, c.nodes) == ("cpu", 2)


def test_resources_do_not_change_the_name_of_a_run(open_sweep: Callable[..., Sweep]) -> None:
    sweep = open_sweep("points: [{seed: 1, cluster.nodes: 2}, {seed: 2}]")
    assert [run.config.name for run in sweep.runs] == ["seed1", "seed2"]
    assert [run.config.name for run in open_sweep("grid: {cluster.nodes: [1, 2]}").runs] == ["nodes1", "nodes2"]


def test_all_problems_have_their_line(open_sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    text = """
points:
  - {name: a, cluster.nodes: 0}
  - {name: b, cluster.tyme: "1:00:00"}
  - {name: c, cluster: nowhere}
  - {name: d, cluster.time: soon}
grid: {seed: [0, 1]}
"""
    found = problems(open_sweep, text)
    file = f"{tmp_path}/sweep.yaml"
    assert (
        found[0] == f"nodes ({file}, line 5, cluster.nodes): expected a value of at least 1, got 0 [a-seed0, a-seed1]"
    )
    assert f"tyme ({file}, line 6, cluster.tyme): unknown key; did you mean time?" in found[1]
    assert found[2].startswith(f"cluster ({file}, line 7, cluster): {tmp_path}/nowhere: there is no such")
    assert found[3].startswith("time (") and "line 8" in found[3] and len(found) == 4


@pytest.mark.parametrize(
    "text",
    [
        "points: [{name: a, cluster: big}]",
        "points: [{name: a}]\nset: {cluster: big.yaml}",
        "points: [{name: a}]\ngrid: {cluster: [big]}\nrun_name: a",
    ],
)
def test_a_profile_is_found_from_the_file_that_names_it(
    open_sweep: Callable[..., Sweep], tmp_path: Path, text: str
) -> None:
    open_sweep(text)
    (tmp_path / "other").mkdir()
    other = tmp_path / "other/other.yaml"
    other.write_text("extends: ../sweep.yaml\nname: t\n")
    profile = tmp_path / "cluster.yaml"
    assert profiles(with_resources(load_sweep(other), profile, load_cluster(profile), ()))["a"].partition == "big"


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        (POINTS, "nodes=3", "command line: cluster.nodes=3: varies in "),
        (POINTS, "sbatch.reservation=monday", "command line: cluster.sbatch.reservation=monday: varies in "),
        ("grid: {cluster: [big, null]}", "time='1:00:00'", "cluster: expected the name or the file of a profile, got"),
        ("points: [{cluster: 3}]", "time='1:00:00'", "cluster: expected the name or the file of a profile, got 3"),
        ("points: [{cluster: here}]", "gpus_per_node=0", "cluster: a run on this machine among runs of SLURM"),
    ],
)
def test_what_is_refused(open_sweep: Callable[..., Sweep], text: str, override: str, expected: str) -> None:
    assert any(expected in problem for problem in problems(open_sweep, text, override))


def test_a_batch_that_does_not_suit_the_ranks_of_a_run(open_sweep: Callable[..., Sweep]) -> None:
    sweep = open_sweep("points: [{name: a}, {name: b, cluster.nodes: 3}]")
    with pytest.raises(UserError, match=r"train.global_batch.*3 ranks"):
        decide_submissions(sweep, load_cluster(sweep.file.with_name("cluster.yaml")))


def test_the_table_shows_each_set(open_sweep: Callable[..., Sweep]) -> None:
    sweep = open_sweep(POINTS)
    cluster = load_cluster(sweep.file.with_name("cluster.yaml"))
    table = submissions_table(decide_submissions(sweep, cluster), cluster)
    assert re.search(r"large-seed0 .*cluster\.nodes=2.*2 ranks", table)
    assert "small-seed0, small-seed1: partition cpu, nodes 1, with no GPU and 1 rank each, 2 CPUs a rank" in table
    assert "large-seed0, large-seed1: partition cpu, nodes 2," in table and "each run" not in table


def test_on_this_machine_they_have_no_effect(open_sweep: Callable[..., Sweep]) -> None:
    sweep = open_sweep(POINTS, profile="{cluster: local, gpus_per_node: 0}")
    assert not profiles(sweep)
    cluster = load_cluster(sweep.file.with_name("cluster.yaml"))
    table = submissions_table(decide_submissions(sweep, cluster), cluster)
    assert "(cluster.KEY) are for SLURM, and have no effect here" in table


def test_the_example_of_the_documentation(open_sweep: Callable[..., Sweep]) -> None:
    text = (ROOT / "docs/clusters.md").read_text()
    (example,) = re.findall(r"```yaml\n(points:[^`]*cluster: a100_node[^`]*)```", text)
    base = "set: {model.name: swin_unetr, data.patch: [64, 32, 32]}\n"
    sweep = open_sweep(base + example, profile=(ROOT / "slurm/clusters/t4.yaml").read_text())
    decide_submissions(sweep, load_cluster("t4"))
    small, large, largest = profiles(sweep).values()
    assert (small.partition, small.time) == ("t4", "04:00:00")
    assert (large.partition, large.nodes, large.memory_gb_per_task) == ("t4", 2, 48)
    assert (largest.partition, largest.gpus_per_node) == ("a100", 8)


# -- arrays --------------------------------------------------------------------------------------------------


def runs(tiny_config: Callable[..., RunConfig], count: int) -> list[SweepRun]:
    return [SweepRun(tiny_config(None, Path("/x"), name=f"r{number}"), {}) for number in range(count)]


@pytest.mark.parametrize(
    ("count", "most", "parallel", "sizes", "limits", "after"),
    [
        (5, None, 2, [5], [2], [None]),
        (5, 5, 8, [5], [8], [None]),
        (7, 3, 8, [2, 2, 3], [3, 3, 2], [None] * 3),
        (7, 2, 3, [1, 2, 2, 2], [1, 1, 1], [None, None, None, 0]),
        (4, 1, 1, [1] * 4, [1] * 4, [None, 0, 1, 2]),
    ],
)
def test_arrays_share_the_limit_of_runs(
    tiny_config: Callable[..., RunConfig],
    count: int,
    most: int | None,
    parallel: int,
    sizes: list[int],
    limits: list[int],
    after: list[int | None],
) -> None:
    planned = runs(tiny_config, count)
    arrays = plan_arrays(planned, ClusterConfig(cluster="slurm", parallel=parallel), most)
    assert [run.config.name for array in arrays for run in array.runs] == [run.config.name for run in planned]
    assert [len(array.runs) for array in arrays] == sizes
    assert [array.after for array in arrays] == after
    assert [array.cluster.parallel for array in arrays][: len(limits)] == limits
    assert sum(array.cluster.parallel for array in arrays if array.after is None) == parallel


def test_a_dependency_of_the_profile_is_kept() -> None:
    profile = ClusterConfig(cluster="slurm", sbatch={"dependency": "afterok:5", "reservation": "x"})
    assert with_dependency(profile, "12").sbatch == {"dependency": "afterok:5,afterany:12", "reservation": "x"}
