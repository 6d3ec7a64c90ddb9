"""The ids of a run in trackers."""

from __future__ import annotations

from pathlib import Path

from fusionseg.runs.tracker_ids import TrackerIds


def test_ids_stay_when_a_run_is_resumed_and_go_when_it_begins_again(tmp_path: Path) -> None:
    TrackerIds(tmp_path, 0)["wandb"] = "abc"
    assert dict(TrackerIds(tmp_path, 40)) == {"wandb": "abc"}
    assert not TrackerIds(tmp_path, 0), "no checkpoint was left: the configuration may be another one"
    assert not TrackerIds(tmp_path, 40), "it stays forgotten, also when no tracker was on at the start"
