"""The engine's small parts: plateau, schedule, launch, precision, signals, checkpoints, windows."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.catalogue import assert_seen
from torch import nn

from fusionseg.config import PlateauConfig, ValidateConfig, load_config
from fusionseg.data.loading import noise_lines
from fusionseg.distributed.launch import Launch
from fusionseg.distributed.world import choose_device
from fusionseg.runs.checkpoint_writer import CheckpointWriter
from fusionseg.runs.checkpoints import newest_intact, read_checkpoint
from fusionseg.runs.host_copy import HostBuffers
from fusionseg.runs.paths import numbered_checkpoints
from fusionseg.training.ending.reasons import reached_plateau
from fusionseg.training.ending.signals import STOPPING, StopSignals, signal_name
from fusionseg.training.optimizer import build_optimizer, learning_rate
from fusionseg.training.optimizers.standard import OptimConfig
from fusionseg.training.precision import Precision, choose_precision, precision_for
from fusionseg.training.schedules.standard import ScheduleConfig
from fusionseg.training.tasks.sliding_window import predict_logits
from fusionseg.training.training_state import noise_change
from fusionseg.utils.errors import TrainingStopped, UserError

# -- plateau -------------------------------------------------------------------------------------------------

THESIS = PlateauConfig()  # less than 0.4 % in two successive windows of 5000


def history(*best_of_window: float, every: int = 1000) -> list[tuple[int, float]]:
    """A validation every 1000 steps; each window of 5000 reaches its best at its end."""
    return [
        ((5 * window + n + 1) * every, dice - 0.01 * (4 - n))
        for window, dice in enumerate(best_of_window)
        for n in range(5)
    ]


@pytest.mark.parametrize(
    ("best", "plateau"),
    [
        ((), False),
        ((0.80,), False),
        ((0.80, 0.80), False),  # one window has gained nothing
        ((0.80, 0.80, 0.80), True),
        ((0.80, 0.803, 0.806), True),  # each under 0.004, though not both together
        ((0.80, 0.803, 0.808), False),
        ((0.80, 0.805, 0.806), False),  # the one before has gained
        ((0.80, 0.81, 0.811, 0.812), True),
        ((0.80, 0.75, 0.70), True),  # the best so far counts, not the window's own
        ((0.80, 0.70, 0.803, 0.806), True),
        ((0.80, 0.80, 0.80, 0.90), False),  # it was allowed to go on and gained
    ],
)
def test_the_plateau_of_the_thesis(best: tuple[float, ...], plateau: bool) -> None:
    assert reached_plateau(history(*best), THESIS) is plateau


def test_a_window_counts_when_it_is_full() -> None:
    assert not reached_plateau(history(0.8, 0.8, 0.8)[:-1], THESIS)
    assert reached_plateau([*history(0.8, 0.8, 0.8), (16000, 0.99)], THESIS)  # 16000 is of the next window


def test_a_gain_of_exactly_min_gain_is_a_gain() -> None:
    config = PlateauConfig(window=10, windows=1, min_gain=0.25)
    assert not reached_plateau([(10, 0.25), (20, 0.5)], config)
    assert reached_plateau([(10, 0.25), (20, 0.375)], config)


# -- schedule and optimizers ---------------------------------------------------------------------------------


def rates(steps: int = 100, lr: float = 1.0, **schedule: Any) -> list[float]:
    config = ScheduleConfig.model_validate(schedule)
    return [learning_rate(step, steps, lr, config) for step in range(steps)]


def test_warm_up_is_linear_and_ends_at_lr() -> None:
    for name in ("cosine", "polynomial", "constant"):
        values = rates(name=name, warmup=4, lr=2.0)
        assert values[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_cosine() -> None:
    values = rates(name="cosine", warmup=0, min_lr=0.2)
    assert values[0] == 1.0 and values[50] == pytest.approx(0.6)
    assert values[25] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.sqrt(0.5)))
    assert values[-1] == pytest.approx(0.2, abs=1e-3) and values == sorted(values, reverse=True)
    late = rates(name="cosine", warmup=20)
    assert late[60] == pytest.approx(0.5)  # half of the way from 20 to 100


@pytest.mark.parametrize("name", ["cosine", "polynomial"])
def test_a_warm_up_longer_than_the_run_is_cut_to_a_tenth(name: str) -> None:
    assert rates(steps=50, name=name, warmup=500) == rates(steps=50, name=name, warmup=5)
    assert rates(steps=50, name=name, warmup=50) == rates(steps=50, name=name, warmup=5)
    assert rates(steps=50, name=name, warmup=49)[48] == 1.0
    assert rates(steps=4, name=name, warmup=500)[0] == 1.0
    assert rates(steps=50, name="constant", warmup=100)[-1] == 0.5  # as before: old runs of this kind resume


def test_polynomial() -> None:
    values = rates(name="polynomial", warmup=0)
    assert values == pytest.approx([(1 - step / 100) ** 0.9 for step in range(100)])
    assert rates(name="polynomial", warmup=0, power=2.0, min_lr=0.5)[50] == pytest.approx(0.625)


def test_constant() -> None:
    assert set(rates(name="constant", warmup=0, lr=0.3)) == {0.3}


def test_a_schedule_that_restarts_is_nnssls_sawtooth() -> None:
    """Decoder: a rise over 5 of 10 steps, a fall over the others. Whole network: a rise over 4 steps, then a fall."""
    config = ScheduleConfig(name="polynomial", warmup=4)
    values = [learning_rate(step, 50, 1.0, config, restart=10) for step in range(50)]
    expected = [(step + 1) / 5 for step in range(5)] + [(1 - (step - 5) / 5) ** 0.9 for step in range(5, 10)]
    expected += [(step - 9) / 4 for step in range(10, 14)] + [(1 - (step - 14) / 36) ** 0.9 for step in range(14, 50)]
    assert values == pytest.approx(expected)
    assert values[10:] == rates(steps=40, name="polynomial", warmup=4)


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.7)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.1)
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(name="cosine", warmup=0, lr=0.7, min_lr=0.1) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("raw", "kind", "options"),
    [
        ({"name": "adamw"}, "AdamW", {"betas": (0.9, 0.999), "weight_decay": 1e-5}),
        ({"name": "adam", "betas": [0.8, 0.9]}, "Adam", {"betas": (0.8, 0.9)}),
        ({"name": "sgd"}, "SGD", {"momentum": 0.99, "nesterov": True}),
        ({"name": "sgd", "momentum": 0.0}, "SGD", {"momentum": 0.0, "nesterov": False}),
        ({"name": "novograd"}, "Novograd", {"betas": (0.9, 0.98)}),
    ],
)
def test_optimizers(raw: dict[str, Any], kind: str, options: dict[str, Any]) -> None:
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    weight = nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(OptimConfig.model_validate({"lr": 0.01, **raw}), [frozen, weight])
    group = optimizer.param_groups[0]
    assert type(optimizer).__name__ == kind
    assert {name: group[name] for name in options} == options and group["lr"] == 0.01
    assert group["params"] == [weight]
    weight.sum().backward()
    optimizer.step()
    assert (weight < 1).all() and (frozen == 1).all()


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_first_step_that_is_skipped_leaves_no_trace(name: str) -> None:
    """As it is in fp16, until the loss scale fits; torch makes SGD's momentum then, of memory as it finds it."""
    skipped, plain = nn.Parameter(torch.ones(1000)), nn.Parameter(torch.ones(1000))
    optimizers = [build_optimizer(OptimConfig(name=name, lr=0.01), [weight]) for weight in (skipped, plain)]
    torch.use_deterministic_algorithms(True)  # memory that is not initialised is NaN then
    try:
        for found_inf in (1.0, 0.0, 0.0):
            for optimizer, weight in zip(optimizers, (skipped, plain), strict=True):
                weight.grad = torch.full_like(weight, torch.inf if found_inf else 0.5)
                optimizer.found_inf = torch.tensor(found_inf)
                if not (weight is plain and found_inf):
                    optimizer.step()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(skipped, plain) and (plain < 1).all()


# -- device -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "visible", "local_rank", "local_world", "expected"),
    [
        ("cpu", 4, 0, 1, "cpu"),
        ("auto", 0, 0, 1, "cpu"),
        ("auto", 0, 3, 4, "cpu"),
        ("auto", 1, 0, 1, "cuda:0"),
        ("cuda", 1, 0, 1, "cuda:0"),
        ("auto", 1, 3, 4, "cuda:0"),  # each process sees only its own
        ("auto", 4, 0, 4, "cuda:0"),
        ("cuda", 4, 3, 4, "cuda:3"),  # all are visible to all
        ("auto", 8, 3, 4, "cuda:3"),
    ],
)
def test_devices(request_: str, visible: int, local_rank: int, local_world: int, expected: str) -> None:
    launch = Launch(local_rank, local_world, local_rank, local_world)
    assert str(choose_device(request_, visible, launch)) == expected


def test_devices_that_are_not_there() -> None:
    with pytest.raises(UserError, match=r"no GPU.*set device: cpu"):
        choose_device("cuda", 0, Launch())
    with pytest.raises(UserError, match=r"4 processes .*2 GPUs .*--nproc_per_node=2"):
        choose_device("auto", 2, Launch(2, 4, 2, 4))


# -- precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "device", "capability", "native", "expected", "reason"),
    [
        ("auto", "cuda", (7, 5), False, "fp16", "before 8.0; with a loss scaler"),
        ("auto", "cuda", (8, 0), True, "bf16", "compute capability (8, 0)"),
        ("auto", "cuda", (9, 0), True, "bf16", "compute capability (9, 0)"),
        ("auto", "cpu", None, True, "bf16", "the CPU has bf16 instructions"),
        ("auto", "cpu", None, False, "fp32", "no bf16"),
        ("fp16", "cuda", (9, 0), True, "fp16", "as configured"),
        ("fp32", "cuda", (7, 5), False, "fp32", "as configured"),
        ("fp32", "cuda", (9, 0), True, "fp32", "as configured; its convolutions in TF32"),
        ("bf16", "cpu", None, False, "bf16", "as configured"),
    ],
)
def test_precision(
    request_: str, device: str, capability: tuple[int, int] | None, native: bool, expected: str, reason: str
) -> None:
    precision = precision_for(request_, device, capability, native_bf16=native)
    assert precision.name == expected and reason in precision.reason and precision.device_type == device
    assert precision.scales_loss == (expected == "fp16")
    assert precision.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[expected]


def test_bf16_on_an_older_gpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"\(7, 5\).*expected at least 8.0\); set it to fp16 or auto"):
        precision_for("bf16", "cuda", (7, 5), native_bf16=False)


def test_autocast_computes_in_the_precision() -> None:
    layer, x = nn.Linear(4, 4), torch.ones(1, 4)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with Precision(name, "", "cpu").autocast():
            assert layer(x).dtype == dtype
    assert choose_precision("fp32", torch.device("cpu")).name == "fp32"
    assert choose_precision("auto", torch.device("cpu")).name in ("fp32", "bf16")


# -- signals -------------------------------------------------------------------------------------------------


@pytest.fixture
def _with_terminal() -> Iterator[None]:
    """SIGHUP is not ignored, as it would be in tests that nohup started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_with_terminal")
@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_sets_a_flag(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in STOPPING]
    with StopSignals() as signals:
        assert signals.received == 0
        os.kill(os.getpid(), number)
        assert signals.received == number and signal_name(signals.received) == number.name
    assert [signal.getsignal(each) for each in STOPPING] == before


@pytest.mark.usefixtures("_with_terminal")
def test_a_hangup_that_is_ignored_stays_so() -> None:
    """By nohup, whose purpose it is."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_second_interrupt_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second SIGINT did nothing")
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_sigterm_and_an_interrupt_after_it_do_not_raise() -> None:
    with StopSignals() as signals:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert signals.received == signal.SIGINT


# -- checkpoints ---------------------------------------------------------------------------------------------


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "step": step,
        "model": {"weight": torch.randn(64, 64, generator=generator)},
        "best": None,
        "h": [(1, 0.5)],
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["step"] == other["step"] and torch.equal(one["model"]["weight"], other["model"]["weight"])


def saved(folder: Path, *steps: int, keep: int = 3) -> CheckpointWriter:
    checkpoints = CheckpointWriter(folder, keep)
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.finish()
    return checkpoints


def test_no_checkpoint_is_deleted_in_a_folder_of_another_process(tmp_path: Path) -> None:
    def refuse() -> None:
        raise TrainingStopped("taken over")

    saved(tmp_path, 500, 1000)
    with pytest.raises(TrainingStopped, match="taken over"):
        CheckpointWriter(tmp_path, 3, check=refuse).delete_after(500)
    assert [step for step, _ in numbered_checkpoints(tmp_path)] == [1000, 500]
    saved(tmp_path).delete_after(500)
    assert [step for step, _ in numbered_checkpoints(tmp_path)] == [500]


def test_the_newest_are_kept_and_last_is_the_newest(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "c", 500, 1000, 1500, 2000)
    checkpoints.save_best(state(1000))
    checkpoints.finish()
    names = {path.name for path in (tmp_path / "c").iterdir()}
    assert names == {"step_00001000.pt", "step_00001500.pt", "step_00002000.pt", "last.pt", "best.pt"}
    assert [step for step, _ in numbered_checkpoints(tmp_path / "c")] == [2000, 1500, 1000]
    assert same(read_checkpoint(tmp_path / "c/last.pt"), state(2000))
    assert same(read_checkpoint(tmp_path / "c/best.pt"), state(1000))
    assert (tmp_path / "c/last.pt").samefile(tmp_path / "c/step_00002000.pt")
    found = newest_intact(tmp_path / "c")
    assert found is not None and found[0].name == "step_00002000.pt" and same(found[1], state(2000))
    assert found[1]["best"] is None and [tuple(pair) for pair in found[1]["h"]] == [(1, 0.5)]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    checkpoints.save(2, state(7))
    checkpoints.finish()
    assert same(read_checkpoint(tmp_path / "step_00000002.pt"), state(7))
    assert same(read_checkpoint(tmp_path / "last.pt"), state(7))


def test_no_checkpoints(tmp_path: Path) -> None:
    assert newest_intact(tmp_path / "none") is None
    for stray in ("step_1.pt", "step_00000001.pt.bak", ".partial-1-step_00000001.pt", "best.pt"):
        (tmp_path / stray).write_bytes(b"not one")
    assert newest_intact(tmp_path) is None


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "a byte":
        content[len(content) // 2] ^= 1
    path.unlink()  # last.pt is the same file: it must keep its own content
    path.write_bytes({"half": content[: len(content) // 2], "empty": b""}.get(how, content))


@pytest.mark.parametrize("how", ["a byte", "half", "empty"])
@pytest.mark.fault("checkpoint-damaged")
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    saved(tmp_path, 500, 1000, 1500)
    damage(tmp_path / "step_00001500.pt", how)
    with caplog.at_level(logging.WARNING, "fusionseg"):
        found = newest_intact(tmp_path)
    assert found is not None and found[0].name == "step_00001000.pt" and same(found[1], state(1000))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "step_00001500.pt: damaged checkpoint" in caplog.text
    assert_seen("checkpoint-damaged", caplog.text)


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    for step in (1, 2):
        damage(tmp_path / f"step_{step:08d}.pt", "a byte")
    with pytest.raises(UserError, match=r"none of the checkpoints is intact .*step_00000002.pt, step_00000001.pt"):
        newest_intact(tmp_path)


def test_a_damaged_checkpoint_before_an_intact_one_is_no_error(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    damage(tmp_path / "step_00000001.pt", "half")
    assert newest_intact(tmp_path, at_most=1) is None


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such checkpoint"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Run:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"step": 1, "model": Run()}, tmp_path / "step_00000001.pt")
    with pytest.raises(UserError, match="damaged checkpoint"):
        read_checkpoint(tmp_path / "step_00000001.pt")
    assert not (tmp_path / "ran").exists()


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 500)
    for attempt in (500, 1000):
        with pytest.raises(Exception, match="pickle"):
            checkpoints.save(attempt, {**state(attempt), "function": lambda: None})
            checkpoints.finish()
    assert {path.name for path in tmp_path.iterdir()} == {"step_00000500.pt", "last.pt"}
    assert same(read_checkpoint(tmp_path / "step_00000500.pt"), state(500))


def test_a_checkpoint_holds_what_there_was_when_it_was_saved(tmp_path: Path) -> None:
    """It is written while the training goes on."""
    network, history = torch.nn.BatchNorm1d(3), [(1, 0.5)]
    before = network.state_dict()
    took: list[float] = []
    checkpoints = CheckpointWriter(tmp_path, 3, took.append)
    checkpoints.save(1, {"model": network.state_dict(), "history": history, "pair": (network.weight, 1)})
    with torch.no_grad():
        network.weight.fill_(7)
    history.append((2, 0.6))
    checkpoints.finish()
    assert len(took) == 1 and took[0] > 0
    found = read_checkpoint(tmp_path / "last.pt")
    assert found["model"]["weight"].tolist() == found["pair"][0].tolist() == [1, 1, 1]
    assert found["history"] == [(1, 0.5)]
    assert list(found["model"]) == list(before) and found["model"]._metadata == before._metadata


def test_copies_of_a_state_reuse_their_buffers() -> None:
    """The copy of a later state is in the same memory, with the same layout; another shape gets another buffer."""
    weight = torch.randn(2, 4, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    buffers = HostBuffers()
    first = buffers.copy({"weights": [weight, 3], "step": 1}).wait()
    assert torch.equal(first["weights"][0], weight) and first["weights"][0].stride() == weight.stride()
    expected = weight.clone()
    weight.add_(1)
    assert torch.equal(first["weights"][0], expected)
    second = buffers.copy({"weights": [weight, 3], "step": 2}).wait()
    assert second["weights"][0].data_ptr() == first["weights"][0].data_ptr() and second["step"] == 2
    assert torch.equal(second["weights"][0], weight)
    third = buffers.copy({"weights": [weight[:1], 3]}).wait()
    assert torch.equal(third["weights"][0], weight[:1])


def test_a_write_that_failed_is_told_without_waiting_for_the_next(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 500)
    (tmp_path / "last.pt").unlink()
    (tmp_path / "last.pt").mkdir()
    checkpoints.check()
    checkpoints.save(1000, state(1000))
    limit = time.monotonic() + 60
    while not checkpoints.failures.has_given_up():
        assert time.monotonic() < limit
        checkpoints.check()
        time.sleep(0.01)
    assert "goes on from step_00001000.pt" in checkpoints.failures.verdict
    with pytest.raises(TrainingStopped, match=r"could not be written .*goes on from step_00001000.pt"):
        checkpoints.finish()


# -- windows -------------------------------------------------------------------------------------------------


class Pointwise(nn.Module):
    """Three logits of each voxel from its two channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x[:, :1], x[:, 1:]
        return torch.cat([a * 2 - b, a * b, b + 1], dim=1)


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(5, 6, 7), (8, 8, 8), (5, 20, 8), (19, 17, 23)])
def test_a_pointwise_network_is_applied_to_every_voxel(shape: tuple[int, int, int], overlap: float, blend: str) -> None:
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    settings = ValidateConfig.model_validate({"overlap": overlap, "blend": blend, "window_batch": 3})
    precision, device = Precision("fp32", "", "cpu"), torch.device("cpu")
    logits = predict_logits(Pointwise(), image, (-3.0, 9.0), (8, 8, 8), settings, precision, device=device)
    assert logits.shape == (3, *shape) and logits.dtype == torch.float32 and not logits.requires_grad
    torch.testing.assert_close(logits, Pointwise()(image[None])[0], atol=1e-4, rtol=1e-4)


class Recorder(nn.Module):
    """Keeps the windows that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += list(x.clone())
        return x


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_small_volume_is_padded_with_its_background(dtype: torch.dtype) -> None:
    image, network = torch.ones(2, 4, 5, 8, dtype=dtype), Recorder()
    background = torch.tensor([-1.0, -2.0]).view(2, 1, 1, 1)
    predict_logits(
        network,
        image,
        background,
        (8, 8, 8),
        ValidateConfig(),
        Precision("fp32", "", "cpu"),
        device=torch.device("cpu"),
    )
    assert len(network.seen) == 1
    wanted = torch.tensor([-1.0, -2.0]).view(2, 1, 1, 1).expand(2, 8, 8, 8).clone()
    wanted[:, 2:6, 1:6] = 1  # in the middle
    assert torch.equal(network.seen[0], wanted)


def test_no_window_is_larger_than_the_patch_or_the_window_batch() -> None:
    sizes: set[tuple[int, ...]] = set()

    class Sizes(Pointwise):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.add(tuple(x.shape))
            return super().forward(x)

    settings = ValidateConfig.model_validate({"window_batch": 2})
    precision, device = Precision("bf16", "", "cpu"), torch.device("cpu")
    logits = predict_logits(Sizes(), torch.ones(2, 13, 9, 6), (0, 0), (8, 6, 6), settings, precision, device=device)
    assert logits.dtype == torch.float32
    assert {size[1:] for size in sizes} == {(2, 8, 6, 6)} and {size[0] for size in sizes} <= {
        1,
        2,
    }


@pytest.mark.parametrize("augment", ["none", "nnunet"])
def test_noise_of_another_version_is_warned_of(augment: str) -> None:
    config = load_config("hippocampus_unet", [f"augment={augment}", "data.root=unused"])
    assert noise_change({"step": 8, "noise": noise_lines.VERSION}, config) is None
    warning = noise_change({"step": 8}, config)  # checkpoints of the first version do not record it
    assert (warning is None) == (augment == "none")
    assert warning is None or warning.startswith("augment.noise: up to step 8 this run was trained by another version")
