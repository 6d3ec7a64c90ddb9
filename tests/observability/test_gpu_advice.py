"""Advice follows from the summary, and there is none when all is well."""

from __future__ import annotations

from typing import Any

import pytest

from fusionseg.observability.gpu.advice import MIN_SAMPLES, advise
from fusionseg.observability.gpu.samples import Sample
from fusionseg.observability.gpu.summary import GpuTotals

WELL = Sample(
    "GPU-a",
    "0",
    busy_percent=97,
    memory_used_gb=60,
    memory_total_gb=80,
    power_w=280,
    power_limit_w=300,
    temperature_c=70,
    sm_clock_mhz=1400,
    throttle=(),
    ecc_corrected=0,
    ecc_uncorrected=0,
)


def summary(*gpus: dict[str, Any], samples: int = 20) -> dict[str, Any]:
    """Of GPUs that all do well but for what is given; `throttled` is {reason: share}."""
    made = []
    for number, changed in enumerate(gpus):
        totals = GpuTotals(f"GPU-{number}", str(number), "card")
        totals.is_lost = changed.pop("lost", False)
        throttled = changed.pop("throttled", {})
        for turn in range(samples):
            reasons = tuple(name for name, share in throttled.items() if turn < share * samples)
            values = {field: getattr(WELL, field) for field in Sample.__slots__} | {"throttle": reasons} | changed
            totals.add(Sample(**values))
        made.append(totals.summary())
    return {"interval_s": 1.0, "gpus": made}


def test_quiet_when_all_is_well() -> None:
    well = summary({}, {"busy_percent": 95, "throttled": {"power": 0.1, "sync_boost": 1.0}})
    assert advise(well) == []
    assert advise(well, data_share=0.02, micro_batch=1) == []
    assert advise(well, data_share=0.5) == []  # its kernels run meanwhile: nothing is lost
    assert advise({"interval_s": 1.0, "gpus": []}) == []


def test_waiting_for_data_on_the_host() -> None:
    [line] = advise(summary({"busy_percent": 63}), data_share=0.31, cache_on_host=True)
    assert line == "GPU 63 % busy, 31 % of the step waits for data: cache on the device (cache.device=accelerator)"


def test_waiting_for_data_on_the_device() -> None:
    [line] = advise(summary({"busy_percent": 63}), data_share=0.31, micro_batch=2)
    assert "train.micro_batch (now 2)" in line and "cache.device" not in line


@pytest.mark.parametrize("used_gb, compile_only", [(10, False), (40, False), (70, True), (None, True)])
def test_idle_without_waiting_for_data(used_gb: float | None, compile_only: bool) -> None:
    changed = {"busy_percent": 70, "memory_used_gb": used_gb}
    [line] = advise(summary(changed, changed), data_share=0.03, cache_on_host=True, micro_batch=1)
    assert line.startswith("GPUs 70 % busy, 3 % of the step waits for data")
    assert "train.compile=default" in line
    assert ("train.micro_batch (now 1)" not in line) == compile_only


def test_idle_and_nothing_known_of_the_steps() -> None:
    [line] = advise(summary({"busy_percent": 40}))
    assert line.startswith("GPU 40 % busy") and "data_s" in line


def test_utilisation_that_is_not_known_is_not_low() -> None:
    assert advise(summary({"busy_percent": None}), data_share=0.5, cache_on_host=True) == []


@pytest.mark.parametrize(
    "throttled, words",
    [
        ({"power": 0.4}, "GPU 0 throttled by power in 40 % of the samples (limit 300 W)"),
        ({"thermal": 0.1}, "GPU 0 throttled by heat in 10 % of the samples (up to 70 °C)"),
        ({"hw_thermal": 0.2, "hw_slowdown": 0.2}, "GPU 0 throttled by heat in 20 %"),
        ({"power_brake": 0.5, "hw_slowdown": 0.5}, "GPU 0 throttled by the power supply in 50 %"),
        ({"hw_slowdown": 0.5}, "GPU 0 throttled by its hardware in 50 %"),
        ({"app_clocks": 1.0}, "GPU 0 limited by application clocks in 100 % of the samples (mean 1400 MHz)"),
    ],
)
def test_throttling(throttled: dict[str, float], words: str) -> None:
    [line] = advise(summary({"throttled": throttled}))
    assert line.startswith(words)


def test_gpus_with_the_same_trouble_share_a_line() -> None:
    hot = summary({"throttled": {"thermal": 0.3}, "temperature_c": 91}, {}, {"throttled": {"thermal": 0.6}})
    [line] = advise(hot)
    assert line.startswith("GPUs 0, 2 throttled by heat in 30 to 60 % of the samples (up to 70 to 91 °C)")


def test_memory_errors() -> None:
    totals = GpuTotals("GPU-0", "3", "card")
    totals.add(Sample("GPU-0", "3", ecc_uncorrected=2))
    [old] = advise({"gpus": [totals.summary()]})
    assert "2 uncorrected memory errors since its driver was loaded, none in this run" in old
    totals.add(Sample("GPU-0", "3", ecc_uncorrected=5))
    [new] = advise({"gpus": [totals.summary()]})
    assert new.startswith("GPU 3: 3 uncorrected memory errors during the run") and "earlier checkpoint" in new


@pytest.mark.parametrize(
    "cache_on_host, micro_batch, offered",
    [
        (False, 2, {"train.micro_batch (now 2)", "cache.device=host"}),
        (True, 1, set()),
        (True, None, {"train.micro_batch"}),
    ],
)
def test_full_memory(cache_on_host: bool, micro_batch: int | None, offered: set[str]) -> None:
    full = summary({"memory_used_gb": 78.4})
    [line] = advise(full, data_share=0.0, cache_on_host=cache_on_host, micro_batch=micro_batch)
    assert line.startswith("GPU 0: memory 98 % full") and "checkpoint_activations" in line
    assert {text for text in ("train.micro_batch (now 2)", "cache.device=host") if text in line} == offered - {
        "train.micro_batch"
    }
    assert ("train.micro_batch" in line) == any(text.startswith("train.micro_batch") for text in offered)


def test_few_samples_say_nothing_but_of_defects() -> None:
    early = summary({"busy_percent": 5, "throttled": {"thermal": 1.0}}, samples=MIN_SAMPLES - 1)
    assert advise(early, data_share=0.9) == []
    [line] = advise(summary({"lost": True}, samples=1))
    assert "GPU 0 was lost" in line


def test_the_gravest_comes_first() -> None:
    lines = advise(
        summary({"busy_percent": 50, "throttled": {"power": 1.0}, "memory_used_gb": 79.9, "lost": True}), data_share=0.0
    )
    assert [next(word for word in ("lost", "power", "full", "busy") if word in line) for line in lines] == [
        "lost",
        "power",
        "full",
        "busy",
    ]
