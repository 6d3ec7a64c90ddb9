"""`train.spikes`: which losses are spikes, the state of a resume, and the way back to a checkpoint before one."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
from end_to_end.runs import checkpoint, records
from faults.catalogue import assert_seen
from full_disk import fill
from training.spiky_loss import write_spiky_loss

from fusionseg.config import RunConfig, load_config
from fusionseg.config.training.spikes import SpikeConfig
from fusionseg.runs.accounts.faults import read_faults
from fusionseg.runs.records import Record, RecordKind, RecordWriter, RunStatus
from fusionseg.training.numerics.loss_spikes import LossSpikes, spike_limit
from fusionseg.training.start import train
from fusionseg.training.training_state import TrainingCheckpoints
from fusionseg.utils.errors import TrainingStopped, UserError

CPU = torch.device("cpu")


def found(losses: list[float], **settings: Any) -> list[int]:
    """The positions of the losses that are spikes."""
    spikes = LossSpikes(SpikeConfig(**settings))
    return [step for step, loss in enumerate(losses) if spikes.look(step, loss) is not None]


def noise(count: int, deviation: float = 0.05, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(0.5, deviation) for _ in range(count)]


def test_noise_and_a_fall_are_no_spikes() -> None:
    assert found(noise(3000)) == []
    assert found([2 * 0.99**step + loss for step, loss in enumerate(noise(1000))]) == []
    assert found([0.5 + 0.01 * (step % 2) for step in range(100)]) == [], "a flat curve"


def test_patches_with_a_loss_of_their_own_are_no_spikes() -> None:
    """One in eight patches has no foreground, and a Dice loss of 1: a spike only as long as few of them are known."""
    draw = random.Random(0)
    spikes = found([1.0 if draw.random() < 0.125 else loss for loss in noise(3000, 0.03)])
    assert len(spikes) < 3 and all(step < 60 for step in spikes)


def test_a_high_loss_is_a_spike_and_a_further_level_is_not_for_long() -> None:
    losses = noise(200)
    losses[60] = 3.0
    assert found(losses) == [60]
    assert found(losses, action="off") == []
    assert found(losses, threshold=100) == []
    losses[5], losses[60] = 3.0, 0.5
    assert found(losses) == [], "there is nothing to compare with yet"
    risen = found([*noise(100), *(3 + loss for loss in noise(300))])
    assert risen[0] == 100 and 1 < len(risen) < 12


def test_the_limit_has_the_median_and_a_robust_deviation() -> None:
    median, limit = spike_limit([*([1.0, 1.1, 0.9] * 10), 50.0, 50.0], 10)
    assert median == 1.0
    assert limit == pytest.approx(1 + 10 * 1.4826 * 0.1, rel=1e-3)
    assert spike_limit([-1.0] * 30, 10)[1] == pytest.approx(-0.8)


def test_the_losses_of_rewinds_are_learned_once() -> None:
    spikes = LossSpikes(SpikeConfig())
    spikes.learn([9.0])
    spikes.load_state_dict(spikes.state_dict(), CPU)
    spikes.learn([9.0, 8.0])
    assert spikes.state_dict()["logged"] == spikes.state_dict()["rewound"] == [9.0, 8.0]


def test_nothing_is_compared_with_losses_from_before_a_start_that_did_not_look() -> None:
    spikes = LossSpikes(SpikeConfig())
    assert not any(spikes.look(step, loss) for step, loss in enumerate(noise(50)))
    off = LossSpikes(SpikeConfig(action="off"))
    off.load_state_dict(spikes.state_dict(), CPU)
    assert off.look(60, 5.0) is None
    state = off.state_dict()
    assert (state["logged"], state["recent"], state["logged_step"]) == ([], None, 60)


def test_a_step_without_a_loss_is_skipped() -> None:
    spikes = LossSpikes(SpikeConfig())
    assert all(spikes.look(step, None) is None for step in range(50))
    assert spikes.state_dict()["logged"] == []


def test_the_step_with_the_highest_loss_is_known_also_after_a_resume() -> None:
    def spike_of(resumed_at: int) -> Any:
        spikes = LossSpikes(SpikeConfig(window=30))
        for step in range(1, 42 * 5 + 1):
            value = {203: 90.0, 204: torch.nan, 202: 7.0}.get(step, 0.5)
            spikes.add(torch.tensor(value))
            if step % 5 == 0:
                spike = spikes.look(step, 20.0 if step == 205 else noise(1, seed=step)[0])
                if spike is not None:
                    return spike
            if step == resumed_at:
                state = spikes.state_dict()
                spikes = LossSpikes(SpikeConfig(window=30))
                spikes.load_state_dict(state, CPU)
        return None

    whole = spike_of(0)
    assert (whole.first, whole.step, whole.worst_step, whole.worst_loss) == (201, 205, 203, 90.0)
    assert "step 203 has 90" in str(whole)
    assert spike_of(203) == spike_of(204) == spike_of(100) == whole


def test_left_out_samples() -> None:
    spikes = LossSpikes(SpikeConfig())
    assert spikes.stream_steps(range(3, 8)) == range(3, 8)
    spikes.leave_out(5, 10)
    spikes.leave_out(5, 2)
    spikes.leave_out(9, 100)
    assert [spikes.stream_step(step) for step in (4, 5, 8, 9)] == [4, 17, 20, 121]
    assert spikes.stream_steps(range(3, 8)) == range(17, 20)
    assert spikes.stream_steps(range(0, 5)) == range(0, 5)
    other = LossSpikes(SpikeConfig())
    other.load_state_dict(spikes.state_dict(), CPU)
    assert other.stream_step(9) == 121
    other.load_state_dict({}, CPU)  # a checkpoint of an older version
    assert other.stream_step(9) == 9


SpikyConfig = Callable[..., RunConfig]


@pytest.fixture
def spiky(balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> SpikyConfig:
    """`spiky([54, 60], action="rewind")`: a run of 64 steps with spikes in these steps of the sample stream."""

    def make(steps: list[int], **settings: Any) -> RunConfig:
        module = "_".join(["spiky", tmp_path.name, *map(str, steps)])  # a process knows one module of a name
        name = write_spiky_loss(tmp_path / f"{module}.py", steps)
        return tiny_config(
            balls, tmp_path, loss={"name": name}, log={"samples": True}, validate={"every": 32},
            train={"steps": 64, "spikes": settings}, checkpoint={"every": 4}, schedule={"warmup": 0},
        )  # fmt: skip

    return make


@pytest.mark.fault("loss-spike")
def test_a_spike_is_an_event_with_its_samples(
    spiky: SpikyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(spiky([54]))
    run = tmp_path / "tiny"
    (event,) = records(run, "event")
    record = next(each for each in records(run, "train") if each["step"] == 55)
    assert (event["event"], event["step"], event["steps"], event["worst_step"]) == ("loss_spike", 55, [55, 55], 55)
    assert event["loss"] == record["loss"] == pytest.approx(event["worst_loss"], rel=1e-6)
    assert event["loss"] > 10 > event["limit"] > event["median"]
    assert event["samples"] == record["samples"] and record["samples"]
    assert [each["step"] for each in records(run, "train")] == list(range(1, 65))
    said = capsys.readouterr().err
    assert_seen("loss-spike", said, run)
    (warning,) = [line for line in said.splitlines() if "train.spikes" in line]
    assert warning.startswith("warning: step 55: ") and record["samples"][0]["case"] in warning


@pytest.mark.fault("rewound")
def test_a_run_goes_back_and_past_the_samples(
    spiky: SpikyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(spiky([54], action="rewind"))
    run = tmp_path / "tiny"
    assert_seen("rewound", capsys.readouterr().err, run)
    (event,) = records(run, "event")
    assert (event["event"], event["step"], event["worst_step"], event["left_out"]) == ("rewind", 52, 55, [52, 3])
    trained = records(run, "train")
    assert [each["step"] for each in trained] == list(range(1, 65))
    assert max(each["loss"] for each in trained) < 10
    assert all(each["step_s"] > 0 and each["data_s"] > 0 for each in trained)
    assert records(run, "end")[-1]["status"] == RunStatus.COMPLETED
    state = checkpoint(run)
    assert (state["spikes"]["rewinds"], state["spikes"]["left_out"]) == (1, [[52, 3]])
    # The samples are those of a run without spikes, three steps later.
    train(spiky([]).model_copy(update={"name": "plain"}))
    plain = {each["step"]: each["samples"] for each in records(tmp_path / "plain", "train")}
    assert [each["samples"] for each in trained[:52]] == [plain[step] for step in range(1, 53)]
    assert [each["samples"] for each in trained[52:61]] == [plain[step] for step in range(56, 65)]
    assert trained[52]["samples"] != plain[53]


@pytest.mark.fault("too-many-rewinds")
def test_a_run_goes_back_no_more_than_it_may(spiky: SpikyConfig, tmp_path: Path) -> None:
    config = spiky([54, 56, 59], action="rewind", rewinds=2)
    for _ in range(2):  # the next start finds the same
        with pytest.raises(
            TrainingStopped, match=r"after 2 rewinds, as many as train\.spikes\.rewinds .*optim\.lr, or"
        ) as stopped:
            train(config)
    run = tmp_path / "tiny"
    assert_seen("too-many-rewinds", str(stopped.value), run)
    end = records(run, "end")[-1]
    assert end["status"] == RunStatus.FAILED and "after 2 rewinds" in end["reason"]
    # The second rewind goes further back than the first. The last spike has its event too.
    events = [(each["event"], each["step"], each.get("left_out")) for each in records(run, "event")]
    assert events == [("rewind", 48, [48, 9]), ("loss_spike", 51, None)]
    train(spiky([54, 56, 59], action="warn"))  # the key may change
    assert [(each["event"], each["step"]) for each in records(run, "event")] == [("rewind", 48), ("loss_spike", 51)]
    state = checkpoint(run)["spikes"]
    assert state["left_out"] == [[48, 9]] and len(state["rewound"]) == 2
    assert [loss for loss in state["logged"] if loss > 10][:2] == state["rewound"], "a further start knows them"


@pytest.mark.fault("signal-in-a-rewind")
def test_a_signal_during_a_rewind_ends_the_run_at_its_checkpoint(
    spiky: SpikyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = TrainingCheckpoints.save_rewound

    def save_and_signal(*arguments: Any) -> None:
        save(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainingCheckpoints, "save_rewound", save_and_signal)
    train(spiky([54], action="rewind"))
    assert_seen("signal-in-a-rewind", capsys.readouterr().err, tmp_path / "tiny")
    end = records(tmp_path / "tiny", "end")[-1]
    assert (end["status"], end["step"]) == (RunStatus.INTERRUPTED, 52)
    assert checkpoint(tmp_path / "tiny")["spikes"]["left_out"] == [[52, 3]]


def test_a_run_that_goes_back_waits_for_a_full_disk(
    spiky: SpikyConfig, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("4m")
    write = RecordWriter.write

    def fill_up(self: RecordWriter, kind: RecordKind, step: int, **fields: Any) -> Record:
        """Fill the disk for two seconds after the checkpoint to which the run goes back."""
        if (kind, step) == (RecordKind.TRAIN, 53) and not (disk / "filled").exists():
            (disk / "filled").touch()
            self.sync()
            fill(disk)
            Timer(2.0, (disk / "filler").unlink).start()
        return write(self, kind, step, **fields)

    monkeypatch.setattr(RecordWriter, "write", fill_up)
    config = spiky([54], action="rewind").model_copy(update={"output": str(disk)})
    assert train(config) == RunStatus.COMPLETED
    run = disk / "tiny"
    assert [each["step"] for each in records(run, "train")] == list(range(1, 65))
    assert [(each["event"], each["step"]) for each in records(run, "event")] == [("rewind", 52)]
    assert read_faults(run)
    assert records(run, "end")[-1]["status"] == RunStatus.COMPLETED


def test_without_a_checkpoint_before_the_spike_a_run_goes_on(
    spiky: SpikyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a `log.every` above `checkpoint.every` times `checkpoint.keep`, which would take many steps here."""
    spike_of = LossSpikes._spike
    monkeypatch.setattr(LossSpikes, "_spike", lambda *arguments: replace(spike_of(*arguments), first=1))
    train(spiky([54], action="rewind"))
    assert "there is no checkpoint before step 1: " in capsys.readouterr().err
    assert [each["event"] for each in records(tmp_path / "tiny", "event")] == ["loss_spike"]
    assert records(tmp_path / "tiny", "end")[-1]["status"] == RunStatus.COMPLETED


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("train.spikes.action=stop", "train.spikes.action"),
        ("train.spikes.window=5", "train.spikes.window"),
        ("train.spikes=rewind", "train.spikes"),
    ],
)
def test_wrong_settings_are_refused(setting: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        load_config("demo", [setting])
