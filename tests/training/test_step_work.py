"""Work of a step on the meta device, and the utilisation that follows from it."""

from __future__ import annotations

import logging

import pytest
import torch

from fusionseg.config import RunConfig, validate
from fusionseg.distributed.device_speed import QuickRates, quick_rates
from fusionseg.models.cost import network_cost
from fusionseg.observability.stream_timer import StreamTimer
from fusionseg.training.memory.step_work import StepWork, count_step_work
from fusionseg.training.observers.utilisation import Utilisation, measure_utilisation
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.choice import build_task

CPU = torch.device("cpu")
FP32 = Precision("fp32", "", "cpu")
RATES = QuickRates(flops_per_s=1e9, bytes_per_s=1e9)


def config(**train: object) -> RunConfig:
    model = {"name": "resunet", "channels": [4, 8]}
    return validate({"model": model, "data": {"patch": [16, 16, 16]}, "train": {"global_batch": 6, **train}})


def work(accumulation_steps: int = 1, rates: QuickRates = RATES, **train: object) -> StepWork:
    run = config(**train)
    return count_step_work(
        build_task(run),
        run,
        in_channels=1,
        out_channels=2,
        precision=FP32,
        accumulation_steps=accumulation_steps,
        rates=rates,
    )


def test_a_step_has_about_three_times_the_operations_of_its_forward_pass() -> None:
    run = config()
    forward = 2 * network_cost(run.model, run.data.patch, in_channels=1, out_channels=2).multiply_adds
    assert 2 * forward < work().flops <= 3 * forward  # the first layer needs no gradient of its input


def test_work_is_that_of_all_micro_batches() -> None:
    one, two, six = work(1), work(2), work(6)
    assert two.flops == 2 * one.flops and six.flops == 6 * one.flops
    assert six.bound_s == pytest.approx(one.bound_s + 5 * (two.bound_s - one.bound_s), rel=2e-3)
    assert work(1, micro_batch=6).flops == six.flops


def test_bound_is_by_the_slower_of_operations_and_memory() -> None:
    fast = 1e30
    by_operations = work(rates=QuickRates(1e9, fast))
    assert by_operations.bound_s == pytest.approx(by_operations.flops / 1e9)
    by_memory = work(rates=QuickRates(fast, 1e9)).bound_s
    assert max(by_operations.bound_s, by_memory) < work().bound_s < by_operations.bound_s + by_memory


def test_fields_of_a_record() -> None:
    assert Utilisation(StepWork(2e9, 0.5), RATES).fields(4.0) == {"mfu": 0.5, "roofline": 0.125}


def test_rates_are_measured_once_and_leave_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    rates = quick_rates(CPU, torch.float32, 1)
    assert torch.equal(torch.rand(1), expected)
    assert 1e8 < rates.flops_per_s < 1e14 and 1e8 < rates.bytes_per_s < 1e13
    assert quick_rates(CPU, torch.float32, 1) is rates


def test_a_count_that_fails_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = config()
    task = build_task(run)

    def fail() -> None:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(task, "build_loss", fail)
    with caplog.at_level(logging.INFO, "fusionseg"):
        found = measure_utilisation(
            task, run, in_channels=1, out_channels=2, precision=FP32, accumulation_steps=1, device=CPU
        )
    assert found is None and "no utilisation: RuntimeError: Tensor.item()" in caplog.text


def test_stream_is_not_timed_on_a_cpu() -> None:
    timer = StreamTimer(enabled=False)
    with timer:
        pass
    assert timer.take() is None
