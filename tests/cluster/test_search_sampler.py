"""The sampler `tpe` of a search: its proposals, and its brackets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from math import log10
from pathlib import Path
from typing import Any

import pytest
from tracker_packages import needs
from written_runs import write_run

from fusionseg.cli import main
from fusionseg.cluster.search import tpe
from fusionseg.cluster.search.brackets import best_of, finalists_of, next_points
from fusionseg.cluster.search.halving import Search, open_search
from fusionseg.cluster.search.results import search_table
from fusionseg.cluster.search.search_file import SearchConfig
from fusionseg.cluster.search.tpe import Tried, propose
from fusionseg.cluster.sweep import Sweep, load_sweep
from fusionseg.config import RunConfig, dump_config
from fusionseg.utils.errors import UserError

SPACE: dict[str, Any] = {
    "optim.lr": {"log": [1e-5, 1e-1]},
    "optim.weight_decay": {"uniform": [0.0, 0.1]},
    "train.global_batch": {"int": [1, 4]},
    "data.patch": [[16, 16, 16], [8, 8, 8]],
}
TEXT = (
    "search: {min_steps: 10, max_steps: 40, factor: 4, trials: 10, batch: 4, sampler: tpe, seed: 3,"
    " space: {optim.lr: {log: [1.0e-5, 1.0e-1]}}}\nset: {validate.every: 10, checkpoint.every: 10}"
)
OpenSweep = Callable[..., Sweep]


def config(**keys: Any) -> SearchConfig:
    return SearchConfig(
        **{"min_steps": 10, "max_steps": 40, "factor": 4, "trials": 40, "sampler": "tpe", "space": SPACE, **keys}
    )


@pytest.fixture
def open_sweep(tmp_path: Path, balls: Path, tiny_config: Callable[..., RunConfig]) -> OpenSweep:
    (tmp_path / "base.yaml").write_text(dump_config(tiny_config(balls, tmp_path / "runs")))

    def start(text: str = TEXT, points: list[dict[str, Any]] | None = None) -> Sweep:
        (tmp_path / "s.yaml").write_text(f"name: s\nbase: base.yaml\n{text}")
        return load_sweep(tmp_path / "s.yaml", points=points)

    return start


def scores_by_rate(points: list[dict[str, Any]]) -> list[Tried]:
    """Trials whose best learning rate is 1e-2: half of them were stopped at the first rung."""
    quality = [-abs(log10(point["optim.lr"]) + 2) for point in points]
    median = sorted(quality)[len(quality) // 2]
    return [
        Tried(point, {10: value, 40: value} if value >= median else {10: value})
        for point, value in zip(points, quality, strict=True)
    ]


@needs("optuna", "search")
def test_proposals_learn_from_the_scores_and_depend_on_nothing_else() -> None:
    search = config(trials=40, batch=20)
    tried = scores_by_rate([{key: value for key, value in point.items() if key != "name"} for point in search.points()])
    assert len(tried) == 20
    proposed = propose(search, tried, 20)
    assert proposed == propose(search, tried, 20)
    assert proposed != propose(search.model_copy(update={"seed": 1}), tried, 20)
    best = max(tried, key=lambda one: one.scores.get(40, -10))
    failed = [Tried(one.settings, {}) if one is best else one for one in tried]
    assert proposed != propose(search, failed, 20)
    for point in proposed:
        assert point.keys() == SPACE.keys()
        assert 1e-5 <= point["optim.lr"] <= 1e-1 and point["optim.lr"] == float(f"{point['optim.lr']:.4g}")
        assert 0 <= point["optim.weight_decay"] <= 0.1 and point["train.global_batch"] in (1, 2, 3, 4)
        assert point["data.patch"] in SPACE["data.patch"]

    def far(points: list[dict[str, Any]]) -> float:
        distances = sorted(abs(log10(point["optim.lr"]) + 2) for point in points)
        return float(distances[len(distances) // 2])

    assert far(proposed) < 0.7 * far([dict(one.settings) for one in tried])
    worst = propose(search.model_copy(update={"mode": "min"}), tried, 20)
    assert far(worst) > far(proposed)


@needs("optuna", "search")
def test_brackets_go_through_all_rungs_one_after_the_other(open_sweep: OpenSweep) -> None:
    """Ten trials in brackets of 4, 4 and 2. A bracket is proposed when the rungs of the one before are decided."""
    sweep = open_sweep()
    assert [run.config.name for run in sweep.runs] == [f"trial{number:03d}" for number in range(4)]
    random = open_sweep(TEXT.replace("batch: 4, sampler: tpe, ", ""))
    assert [run.settings for run in sweep.runs] == [run.settings for run in random.runs[:4]]
    open_sweep()
    done: list[Search] = []
    points: list[dict[str, Any]] = []
    for size in (4, 4, 2):
        search = open_search(open_sweep(points=points) if points else sweep, len(done))
        assert len(search.sweep.runs) == size and f"bracket {len(done) + 1}, rung 1 of 2" in search.title
        while not search.is_done:
            for run in search.part().runs:
                quality = 1 - abs(log10(run.config.optim.lr) + 2) / 10
                shutil.rmtree(run.folder, ignore_errors=True)
                write_run(run.folder, [quality] * ((run.config.stop.at or 40) // 10))
            search, left = search.decided({})
            assert not left
        done.append(search)
        points = next_points(done)
        assert points == next_points(done)
        if points:
            again = open_search(open_sweep(points=points), len(done))
            again.write()  # as a command that was killed after the proposal
            assert next_points(done) == json.loads(json.dumps(points))
    assert points == []
    table = search_table(sweep.folder)
    assert all(f"trial{number:03d}" in table for number in range(10))
    assert len(finalists_of(done).runs) == 3
    best = best_of(done)
    scores = {name: score for search in done for name, score in search.rungs[-1].scores.items()}
    assert best is not None and scores[best] == max(scores.values())
    with pytest.raises(UserError, match=r"search_002.json: holds the decisions of another search \(different: seed"):
        other = open_sweep(TEXT.replace("seed: 3", "seed: 4"), points=[{"name": "trial004", "optim.lr": 1e-3}])
        open_search(other, 1)


def test_without_optuna_the_message_has_the_command(
    open_sweep: OpenSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tpe, "find_spec", lambda name: None if name == "optuna" else find_spec(name))
    open_sweep()
    (tmp_path / "local.yaml").write_text("{cluster: local, gpus_per_node: 0}")
    words = ["submit", str(tmp_path / "s.yaml"), "--cluster", str(tmp_path / "local.yaml")]
    assert main([*words, "--dry-run"]) == 2
    assert "optuna is missing; pip install 'fusionseg[search]', or set sampler: random" in capsys.readouterr().err
    open_sweep(TEXT.replace("batch: 4, sampler: tpe, ", ""))
    assert main([*words, "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: {min_steps: 4, max_steps: 16, sampler: tpe}", "tpe: proposes trials; set space and trials"),
        ("search: {min_steps: 4, max_steps: 16, batch: 4}", "has no effect on sampler: random"),
        (f"{TEXT}\ngrid: {{seed: [0, 1]}}", "grid .*: with search.sampler: tpe each trial is one run"),
    ],
)
def test_an_impossible_sampler_is_refused(open_sweep: OpenSweep, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_sweep(text)


def test_batches_have_a_default() -> None:
    assert config(factor=3).batch_size == 9 and len(config(factor=3).points()) == 9
    assert len(config(trials=5).points()) == 5
