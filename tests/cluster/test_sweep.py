"""Sweeps: which runs there are, what they are called, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusionseg.cluster.sweep import load_sweep, sweep_order
from fusionseg.utils.errors import UserError

ROOT = Path(__file__).parents[2]
BASE = "base.yaml"
NUM_RUNS = {
    "few_labels": 20,
    "few_labels_pretraining": 2,
    "table1": 15, "table1_pretraining": 12, "table2": 36, "masking": 4, "masking_ct": 4, "unets": 12,
    "cross_validation": 15,
    "demo_sweep": 4, "pancreas_table": 12, "hippocampus_table": 9, "hippocampus_folds": 10, "vessels_table1": 15,
    "vessels_table1_pretraining": 12, "vessels_table2": 36,
}  # fmt: skip


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    """A file beside a base configuration; tests write the sweep into it."""
    (tmp_path / BASE).write_text("model: {name: unet, channels: [4, 8]}\ntrain: {steps: 600}\noutput: /scratch\n")
    return tmp_path / "sweep.yaml"


def names(file: Path, text: str, *overrides: str) -> list[str]:
    file.write_text(f"name: s\nbase: {BASE}\n{text}")
    return [run.config.name for run in load_sweep(file, overrides).runs]


def problems(file: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        names(file, text, *overrides)
    return caught.value.problems


def test_the_grid_is_every_combination(sweep_file: Path) -> None:
    found = names(sweep_file, "grid: {model.name: [unet, resunet], seed: [0, 1]}")
    assert found == ["unet-seed0", "unet-seed1", "resunet-seed0", "resunet-seed1"]


def test_overrides_arrive_as_they_are_typed(sweep_file: Path) -> None:
    found = names(sweep_file, "grid: {seed: [0, 1]}", "output=/x/my runs #2", "data.root=/data/[x]: y")
    runs = load_sweep(sweep_file, ("output=/x/my runs #2", "data.root=/data/[x]: y")).runs
    assert found == ["seed0", "seed1"]
    assert {(run.folder.parent, run.config.data.root) for run in runs} == {(Path("/x/my runs #2/s"), "/data/[x]: y")}


def test_points_are_crossed_with_the_grid(sweep_file: Path) -> None:
    text = """
set: {train.steps: 700}
points:
  - {name: small}
  - {name: large, model.channels: [8, 16, 32]}
grid: {data.fold: [0, 1]}
"""
    assert names(sweep_file, text) == ["small-fold0", "small-fold1", "large-fold0", "large-fold1"]
    runs = load_sweep(sweep_file).runs
    assert [run.config.model.channels for run in runs] == [(4, 8), (4, 8), (8, 16, 32), (8, 16, 32)]  # type: ignore[union-attr]
    assert [run.config.data.fold for run in runs] == [0, 1, 0, 1]
    assert {run.config.train.steps for run in runs} == {700}
    assert runs[3].folder == Path("/scratch/s/large-fold1")
    assert runs[3].settings == {"model.channels": [8, 16, 32], "data.fold": 1}


def test_what_is_left_out(sweep_file: Path) -> None:
    text = "grid: {model.name: [unet, resunet], seed: [0, 1]}\nleave_out: [{model.name: unet, seed: 1}]"
    assert names(sweep_file, text) == ["unet-seed0", "resunet-seed0", "resunet-seed1"]


@pytest.mark.parametrize(
    ("template", "first"),
    [
        ('"{model.name}_s{seed}"', "unet_s0"),
        ('"lr {optim.lr}/{model.channels}"', "lr_0.001_4x8"),
        ('"{name}-{seed}"', "p-0"),
    ],
)
def test_templates(sweep_file: Path, template: str, first: str) -> None:
    text = f"points: [{{name: p}}]\nset: {{optim.lr: 1e-3}}\ngrid: {{seed: [0]}}\nrun_name: {template}"
    assert names(sweep_file, text) == [first]


def test_overrides_win_in_all_runs(sweep_file: Path, tmp_path: Path) -> None:
    sweep_file.write_text(f"name: s\nbase: {BASE}\nset: {{train.steps: 700}}\ngrid: {{seed: [0, 1]}}")
    sweep = load_sweep(sweep_file, ["train.steps=900", f"output={tmp_path}/runs", "data.root=/data"])
    assert {(run.config.train.steps, run.config.data.root) for run in sweep.runs} == {(900, "/data")}
    assert sweep.folder == tmp_path / "runs/s"


def test_a_pretraining_is_a_sweep_too() -> None:
    runs = load_sweep(ROOT / "configs/sweeps/masking.yaml").runs
    assert [run.config.pretrain.ratio for run in runs if run.config.pretrain] == [0.1, 0.3, 0.5, 0.75]


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("grid: {seed: []}", (), ["grid.seed (", "at least 1 entry"]),
        ("gird: {seed: [0]}", (), ["gird (", "did you mean grid?"]),
        ("grid: {seed: [0]}\npoints: [{seed: 1}]", (), ["points (", "seed is in the grid too"]),
        ("set: {output: x}", (), ["set (", "output is set by the sweep itself"]),
        ("grid: {seed: [0]}\nleave_out: [{fold: 1}]", (), ["leave_out (", "fold varies neither"]),
        ("grid: {seed: [0]}\nleave_out: [{seed: 0}]", (), ["leave_out leaves no run"]),
        (
            "grid: {seed: [0, 1]}\nrun_name: same",
            (),
            ["several runs are called same", "put every key that varies into run_name"],
        ),
        ("grid: {seed: [0]}\nrun_name: '{model.nme}'", (), ["run_name: {model.nme} has no value"]),
        ("grid: {seed: [0, 1]}", ("seed=3",), ["command line: seed=3", "change it there"]),
        ("points: [{name: p, model.channels: [4, 8]}]", ("model.channels=[2, 4]",), ["change it there"]),
        ("grid: {model.name: [unet, resunet]}", ("model={name: unet}",), ["change it there"]),
        ("grid: {model: [{name: unet}, {name: resunet}]}", ("model.channels=[2, 4]",), ["change it there"]),
        ("points: [{name: jobs}]", (), ["cannot be called jobs"]),
        ("grid: {seed: [0, 1]}", ("train.stps=3",), ["train.stps (command line: train.stps=3)", "[seed0, seed1]"]),
        ("points: [{name: 3}]", (), ["points (", "expected a string, got 3"]),
        ("grid: {.seed: [0]}", (), ["grid (", "'.seed' is no key path"]),
    ],
)
def test_what_is_wrong_is_said_once(
    sweep_file: Path, text: str, overrides: tuple[str, ...], expected: list[str]
) -> None:
    found = problems(sweep_file, text, *overrides)
    assert len(found) == 1
    assert all(part in found[0] for part in expected), found


def test_all_problems_of_all_runs_are_listed(sweep_file: Path) -> None:
    found = problems(sweep_file, "grid: {model.name: [unet, unett], seed: [0, -1, 2]}")
    assert [line.split(" (")[0] for line in found] == ["seed", "model.name"]
    assert found[1].endswith("[unett-seed0, unett-seed-1 and 1 more]")


def test_a_missing_base_is_named(sweep_file: Path) -> None:
    sweep_file.write_text("name: s\nbase: nowhere.yaml")
    with pytest.raises(UserError, match=r"nowhere\.yaml: there is no such configuration file.*holds base\.yaml"):
        load_sweep(sweep_file)


@pytest.mark.parametrize("file", sorted((ROOT / "configs/sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_sweeps_resolve(file: Path) -> None:
    runs = load_sweep(file).runs
    assert len(runs) == NUM_RUNS[file.stem]
    assert {run.folder.parent.name for run in runs} == {file.stem}


def test_templates_are_filled_in_each_run(sweep_file: Path) -> None:
    text = """
points: [{name: scratch, init_from: null}, {name: hidden}]
templates: {init_from: "{output}/pre/{name}-{model.name}-seed{seed}"}
grid: {model.name: [unet, resunet], seed: [0, 1]}
"""
    names(sweep_file, text, "output=/x")
    starts = {run.config.name: run.config.init_from for run in load_sweep(sweep_file, ["output=/x"]).runs}
    assert starts["scratch-unet-seed0"] is None
    assert starts["hidden-unet-seed0"] == "/x/pre/hidden-unet-seed0"
    assert starts["hidden-resunet-seed1"] == "/x/pre/hidden-resunet-seed1"
    (problem,) = problems(sweep_file, "templates: {init_from: '{model.nme}'}")
    assert problem.startswith("templates: init_from: {model.nme} has no value")


def test_a_sweep_extends_another(sweep_file: Path) -> None:
    sweep_file.write_text(f"name: s\nbase: {BASE}\nset: {{train.steps: 700}}\ngrid: {{seed: [0, 1]}}")
    other = sweep_file.with_name("other.yaml")
    other.write_text("extends: sweep.yaml\nname: t\ngrid: {seed: [5]}")
    assert [(run.config.name, run.config.train.steps) for run in load_sweep(other, ["output=/x"]).runs] == [
        ("seed5", 700)
    ]
    assert load_sweep(other, ["output=/x"]).folder == Path("/x/t")
    other.write_text("extends: sweep.yaml\ngird: {seed: [5]}")
    with pytest.raises(UserError, match=r"gird \(.*other\.yaml.*did you mean grid"):
        load_sweep(other)
    other.write_text("extends: third.yaml")
    sweep_file.with_name("third.yaml").write_text("extends: other.yaml")
    with pytest.raises(UserError, match=r"extends \(.*third\.yaml.*extends itself"):
        load_sweep(other)


def test_sweeps_that_come_before(sweep_file: Path) -> None:
    text = f"base: {BASE}\nafter: "
    for name, after in (("a", "[]"), ("b", "[a]"), ("c", "[b.yaml, a]")):
        sweep_file.with_name(f"{name}.yaml").write_text(f"name: {name}\n{text}{after}")
    assert [file.stem for file in sweep_order(sweep_file.with_name("c.yaml"))] == ["a", "b", "c"]
    sweep_file.with_name("a.yaml").write_text(f"name: a\n{text}[b]")
    with pytest.raises(UserError, match="b after a after b: sweeps cannot come before each other"):
        sweep_order(sweep_file.with_name("b.yaml"))


def test_ensembles_are_runs_that_differ_in_one_key(sweep_file: Path) -> None:
    text = (
        "points: [{name: a, optim.lr: 1e-3}, {name: b, optim.lr: 1e-2}]\ngrid: {seed: [0, 1], data.fold: [0]}\ntable: "
    )
    for over, expected in (
        ("name", [["a-seed0-fold0", "b-seed0-fold0"], ["a-seed1-fold0", "b-seed1-fold0"]]),
        ("seed", [["a-seed0-fold0", "a-seed1-fold0"], ["b-seed0-fold0", "b-seed1-fold0"]]),
    ):
        names(sweep_file, f"{text}{{ensemble_over: {over}}}")
        found = load_sweep(sweep_file).ensembles()
        assert [[run.config.name for run in group] for group in found] == expected
    (problem,) = problems(sweep_file, "grid: {seed: [0]}\ntable: {ensemble_over: sead}")
    assert "ensemble_over: 'sead' does not vary (expected name, or a key of the grid: seed)" in problem
