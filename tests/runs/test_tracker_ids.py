"""The ids of a run in trackers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusionseg.runs.tracker_ids import TrackerIds


def test_ids_stay_when_a_run_is_resumed_and_go_when_it_begins_again(tmp_path: Path) -> None:
    TrackerIds(tmp_path, 0)["wandb"] = "abc"
    assert dict(TrackerIds(tmp_path, 40)) == {"wandb": "abc"}
    assert not TrackerIds(tmp_path, 0), "no checkpoint was left: the configuration may be another one"
    assert not TrackerIds(tmp_path, 40), "it stays forgotten, also when no tracker was on at the start"


@pytest.mark.parametrize("value", ["x/../../../victim", "..", "", "a b", "*", "x\n", "a" * 200, 7, None])
def test_an_id_that_no_tracker_gives_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: object
) -> None:
    """A tracker makes folders of this name, and those of earlier starts are deleted."""
    (tmp_path / "trackers.json").write_text(json.dumps({"wandb": value, "mlflow": "5f0e8c"}))
    assert dict(TrackerIds(tmp_path, 40)) == {"mlflow": "5f0e8c"}
    assert "the id of wandb is none that a tracker gives" in caplog.text
