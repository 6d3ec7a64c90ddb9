"""`train.spikes.action: rewind` on two ranks: killed before and after, a run ends like an undisturbed one."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from faults.catalogue import assert_seen
from training.spiky_loss import write_spiky_loss

from end_to_end.conftest import arguments
from end_to_end.runs import Program, Started, assert_same_run, checkpoint, records, wait_for_step

RUN = (
    "train={steps: 64, global_batch: 4, micro_batch: 1, precision: fp32, ema: 0.9, spikes: {action: rewind}}",
    "validate.every=30",
    "checkpoint.every=4",
    "log={every: 1, samples: true}",
)
SPIKES = (54, 58)  # steps of the sample stream: at its steps 55 and 56 the run goes back to steps 52 and 48


@pytest.mark.fault("killed-in-a-rewind")
def test_a_killed_run_goes_back_in_the_same_way(program: Program, config_file: Path, tmp_path: Path) -> None:
    # The second rank has the spikes, and both see them in their common loss.
    loss = f"loss.name={write_spiky_loss(tmp_path / 'spiky.py', SPIKES, first_sample=1)}"
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(run: Path) -> list[Started]:
        return program.ranks(2, *arguments(config_file, run, *RUN, loss))

    for rank in start(whole):
        rank.wait().expect(0)
    events = [(event["event"], event["step"], event["left_out"]) for event in records(whole, "event")]
    assert events == [("rewind", 48, [48, 11])], "the second goes further back, before the event of the first"
    assert checkpoint(whole)["spikes"]["rewinds"] == 2
    assert [record["step"] for record in records(whole, "train")] == list(range(1, 65))

    for wanted in (50, 60):
        ranks = start(killed)
        wait_for_step(killed, wanted, ranks)
        for rank in ranks:
            rank.send(signal.SIGKILL)
        first, _ = (rank.wait() for rank in ranks)
        assert_seen("killed-in-a-rewind", first, killed)
    for rank in start(killed):
        rank.wait().expect(0)
    assert_same_run(killed, whole)
    assert checkpoint(killed)["spikes"]["left_out"] == checkpoint(whole)["spikes"]["left_out"]
