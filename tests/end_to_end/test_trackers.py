"""W&B (offline) and MLflow (a local store): a run that is killed and resumed is one run there, with each step once."""

from __future__ import annotations

import json
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.catalogue import assert_seen
from tracker_packages import needs

from end_to_end.conftest import arguments
from end_to_end.runs import TRAIN, Program, Started, rank_environments, records, wait_for_step
from fusionseg import train
from fusionseg.config import RunConfig, dump_config

STEPS, KILL_AT = 8, 5  # the last checkpoint is of step 4
OFFLINE = {"wandb": {"project": "tests", "mode": "offline", "tags": ["tiny"]}}


def payloads(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: a header of 7 bytes, then the log format of LevelDB in blocks of 32 KB."""
    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # too little for a header: the block is filled with zeros
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def sent_to_wandb(path: Path) -> dict[str, Any]:
    """What a .wandb file holds: the run with its configuration, the rows of its history, summary and exit status."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {"rows": [], "config": {}, "summary": {}}

    def values(items: Any) -> dict[str, Any]:
        return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}

    for payload in payloads(path):
        record = wandb_internal_pb2.Record.FromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"id": record.run.run_id, "name": record.run.display_name, "project": record.run.project}
            found["tags"] = list(record.run.tags)
            found["config"] |= values(record.run.config.update)
        elif kind == "history":
            found["rows"].append(values(record.history.item))
        elif kind == "summary":
            found["summary"] |= values(record.summary.update)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def curve(run: Path, kind: str, field: str) -> list[tuple[int, float]]:
    return [(record["step"], record[field]) for record in records(run, kind)]


def wandb_curve(rows: list[dict[str, Any]], kind: str, field: str) -> list[tuple[int, float]]:
    return [(row[f"{kind}/step"], row[f"{kind}/{field}"]) for row in rows if f"{kind}/{field}" in row]


@needs("wandb")
@needs("mlflow")
def test_a_killed_run_continues_in_its_trackers(
    program: Program,
    balls: Path,
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = tmp_path / "store"
    config = tiny_config(
        balls,
        tmp_path,
        train={"steps": STEPS},
        validate={"every": 4},
        checkpoint={"every": 4},
        log={**OFFLINE, "mlflow": {"uri": f"file:{store}", "experiment": "tiny runs"}},
    )
    (tmp_path / "c.yaml").write_text(dump_config(config))
    run = tmp_path / "run"

    def start() -> list[Started]:
        words = arguments(tmp_path / "c.yaml", run)
        return [program.warm(TRAIN, *words, env=env, cwd=tmp_path) for env in rank_environments(2)]

    ranks = start()
    wait_for_step(run, KILL_AT, ranks)
    for rank in ranks:
        rank.send(signal.SIGKILL)
        rank.wait()
    ids = json.loads((run / "trackers.json").read_text())
    assert len(list(run.glob("wandb/offline-run-*"))) == 1
    for rank in start():
        assert "log.wandb" not in (said := rank.wait().expect(0).err) and "log.mlflow" not in said
    assert json.loads((run / "trackers.json").read_text()) == ids
    assert [step for step, _ in curve(run, "train", "loss")] == list(range(1, STEPS + 1))

    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    sent = sent_to_wandb(file)
    assert (sent["id"], sent["name"], sent["project"], sent["tags"]) == (ids["wandb"], "run", "tests", ["tiny"])
    assert wandb_curve(sent["rows"], "train", "loss") == curve(run, "train", "loss")
    assert wandb_curve(sent["rows"], "val", "dice") == curve(run, "val", "dice")
    assert [step for step, _ in wandb_curve(sent["rows"], "val", "validation/_type")] == [4, 8]
    assert len(list(file.parent.glob("files/media/images/val/*.png"))) == 2
    best = records(run, "end")[-1]["best_dice"]
    assert sent["summary"]["best_dice"] == best and sent["exit"] == 0
    environment = json.loads((run / "environment.json").read_text())
    assert sent["config"]["model"]["name"] == config.model.name
    assert sent["config"]["environment"]["commit"] == environment["commit"]

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"file:{store}")
    experiment = client.get_experiment_by_name("tiny runs")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_id, found.info.run_name, found.info.status) == (ids["mlflow"], "run", "FINISHED")
    for kind, field in (("train", "loss"), ("val", "dice")):
        history = client.get_metric_history(ids["mlflow"], f"{kind}/{field}")
        assert [(point.step, point.value) for point in history] == curve(run, kind, field)
    assert found.data.metrics["best_dice"] == best
    assert found.data.params["model.name"] == config.model.name
    assert found.data.tags["mlflow.source.git.commit"] == environment["commit"]
    files = {file.path for file in client.list_artifacts(ids["mlflow"])}
    assert files == {"configuration.yaml", "versions.json", "images"}
    assert len([one for one in client.list_artifacts(ids["mlflow"], "images") if one.path.endswith(".png")]) == 2


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
@pytest.mark.fault("tracker-package-missing")
def test_a_missing_package_is_refused_before_the_training(
    package: str,
    balls: Path,
    tmp_path: Path,
    tiny_config: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / package).mkdir()  # as W&B leaves it in the working directory
    monkeypatch.delitem(sys.modules, package, raising=False)  # of another test
    monkeypatch.setattr(
        sys, "path", [str(tmp_path), *(path for path in sys.path if not (Path(path) / package).is_dir())]
    )
    (tmp_path / "c.yaml").write_text(dump_config(tiny_config(balls, tmp_path, log={package: {}})))
    assert train.main(["--config", str(tmp_path / "c.yaml")]) == 2
    assert train.main(["--config", str(tmp_path / "c.yaml"), "--dry-run"]) == 2
    wanted = f"log.{package}: the package {package} is missing; pip install 'fusionseg[{package}]', or set"
    said = capsys.readouterr().err
    assert said.count(wanted) == 2
    assert_seen("tracker-package-missing", said.replace("mlflow", "wandb"))
    assert not (tmp_path / "tiny").exists()


@needs("wandb")
def test_wandb_without_a_key_is_refused_before_the_training(
    balls: Path,
    tmp_path: Path,
    tiny_config: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import wandb

    wandb.teardown()  # W&B keeps the key of another test in this process
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "c.yaml").write_text(dump_config(tiny_config(balls, tmp_path, log={"wandb": {}})))
    assert train.main(["--config", str(tmp_path / "c.yaml")]) == 2
    assert "log.wandb: there is no API key; run `wandb login`" in capsys.readouterr().err


@needs("mlflow")
@pytest.mark.fault("tracker-server-gone")
def test_a_server_that_is_gone_is_one_warning(
    balls: Path,
    tmp_path: Path,
    tiny_config: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
    config = tiny_config(balls, tmp_path, train={"steps": 2}, log={"mlflow": {"uri": uri}})
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert train.main(["--config", str(tmp_path / "c.yaml")]) == 0
    said = capsys.readouterr().err
    assert_seen("tracker-server-gone", said)
    assert said.count("log.mlflow: MlflowException: ") == 1 and "the run continues without it" in said
    assert "Traceback" not in said
