"""The sinks of trackers: errors of theirs, and what they find of earlier starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tracker_packages import needs

from fusionseg.observability.sinks.mlflow_sink import MlflowSink
from fusionseg.observability.sinks.sink import RunEnd, RunStart, Sink, Sinks
from fusionseg.observability.sinks.wandb_sink import WandbSink, login_problem


def run_start(folder: Path, step: int = 0) -> RunStart:
    return RunStart(folder, "tiny", step, {"seed": 1}, "seed: 1\n", {}, "dice")


def record(step: int) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 0.5}


def test_a_sink_that_fails_is_closed_without_an_end_of_the_run() -> None:
    ends = []

    class Failing(Sink):
        def record(self, record: Mapping[str, Any]) -> None:
            raise ConnectionError("for a moment")

        def finish(self, end: RunEnd) -> None:
            ends.append(end)

    sinks = Sinks([("log.failing", Failing)])
    sinks.start(run_start(Path()), [], lambda step: None)
    sinks.record(record(1))
    sinks.finish(RunEnd({"step": 2}, is_final=True, has_failed=False))
    assert ends == [RunEnd(has_failed=False, is_abandoned=True)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return f"file:{tmp_path}/store"


@needs("mlflow")
def test_mlflow_keeps_a_run_that_goes_on_without_it(tmp_path: Path, store: str) -> None:
    from mlflow.tracking import MlflowClient

    ids: dict[str, str] = {}
    sink = MlflowSink(ids, experiment="tiny", uri=store)
    sink.start(run_start(tmp_path))
    sink.finish(RunEnd(has_failed=False, is_abandoned=True))
    assert MlflowClient(store).get_run(ids["mlflow"]).info.status == "RUNNING"
    sink.start(run_start(tmp_path, 4))
    sink.finish(RunEnd())
    assert MlflowClient(store).get_run(ids["mlflow"]).info.status == "FAILED"


@needs("mlflow")
def test_two_runs_that_begin_together_share_an_mlflow_experiment(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    made = MlflowClient(store).create_experiment("tiny")
    find, asked = MlflowClient.get_experiment_by_name, []

    def find_late(client: Any, name: str) -> Any:
        """Find the experiment from the second time on: another run makes it between the question and the answer."""
        asked.append(name)
        return find(client, name) if len(asked) > 1 else None

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", find_late)
    ids: dict[str, str] = {}
    MlflowSink(ids, experiment="tiny", uri=store).start(run_start(tmp_path))
    assert MlflowClient(store).get_run(ids["mlflow"]).info.experiment_id == made and len(asked) == 2


@needs("wandb")
def test_what_is_wrong_with_the_key_of_wandb_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert "key" in (problem := login_problem("online")).lower() and "no API key" not in problem
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "WANDB_MODE is offline" in login_problem("online")
    assert not login_problem(None) and not login_problem("offline")


class WandbRun(SimpleNamespace):
    """A run as W&B makes it: the rows that are logged, and a folder."""

    def __init__(self, folder: Path, summary: Mapping[str, Any]) -> None:
        super().__init__(dir=str(folder / "files"), summary=dict(summary), rows=[])

    def define_metric(self, *args: Any, **settings: Any) -> None:
        pass

    def log(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@needs("wandb")
def test_wandb_says_what_an_online_run_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    made = WandbRun(tmp_path, {"train/step": 5, "val/step": 4.0, "event/step": 3})
    monkeypatch.setattr(wandb, "init", lambda **settings: made)
    sinks = Sinks([("log.wandb", lambda: WandbSink({"wandb": "abc"}, project="tests", mode="online"))])
    sinks.start(
        run_start(tmp_path, 6), [{**record(3), "kind": "event"}, record(4), record(5), record(6)], lambda step: None
    )
    sinks.record(record(7))
    assert [row.get("train/step") for row in made.rows] == [6, 7]


@needs("wandb")
def test_offline_folders_of_wandb_go_when_the_new_one_has_their_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    old, new = (tmp_path / f"wandb/offline-run-{number}-abc" for number in (1, 2))
    old.mkdir(parents=True)
    monkeypatch.setattr(wandb, "init", lambda **settings: WandbRun(new, {}))
    sink = WandbSink({"wandb": "abc"}, project="tests", mode="offline")
    sink.start(run_start(tmp_path, 4))
    sink.record(record(4))
    assert old.exists(), "a run that is killed here still has it"
    sink.record(record(5))
    assert not old.exists()
