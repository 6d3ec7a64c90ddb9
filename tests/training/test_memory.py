"""The estimated memory of a training step, compared with what torch's allocator gives out in the real step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_networks import tiny

from fusionseg.config import validate
from fusionseg.performance.step_memory import measured_step_bytes
from fusionseg.training.memory.estimate import MemoryEstimate, estimate_memory
from fusionseg.training.memory.live_tensors import LiveTensors
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.choice import build_task


def estimated(raw: dict[str, Any], precision: str = "fp32", device: str = "cpu") -> MemoryEstimate:
    config = validate(raw)
    return estimate_memory(build_task(config), config, 1, 2, precision=Precision(precision, "", device))


def test_live_tensors_count_storages_until_they_are_deleted() -> None:
    older = torch.zeros(50)
    with LiveTensors() as live:
        part = older[:10].detach()
        assert live.live == 0
        first = torch.zeros(100)
        view = first.view(10, 10)
        second = first + 1
        assert live.live == 800
        del first
        assert live.live == 800  # the view holds the storage
        del view, second, part
        assert live.live == 0
    assert live.peak == 800


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        ({}, "fp32"),
        ({}, "bf16"),
        ({"global_batch": 2}, "fp32"),
        pytest.param({"checkpoint_activations": False}, "bf16", marks=pytest.mark.long),
        pytest.param({"checkpoint_activations": True}, "bf16", marks=pytest.mark.long),
    ],
    ids=str,
)
def test_estimate_is_within_15_percent_of_the_real_step(settings: dict[str, Any], precision: str) -> None:
    raw: dict[str, Any] = {"model": {"name": "unet", "channels": [16, 32, 32]}, "data": {"patch": [32, 32, 32]}}
    if "checkpoint_activations" in settings:
        raw = tiny("swin_fusion_od")
    raw["train"] = {"global_batch": 1, "micro_batch": 1, **settings}
    measured = measured_step_bytes(validate(raw), precision, in_channels=1, out_channels=2)
    assert estimated(raw, precision).tensors == pytest.approx(measured, rel=0.15)


def test_parts_of_an_estimate() -> None:
    raw = {**tiny("swin_fusion_od"), "train": {"global_batch": 1, "micro_batch": 1}}
    plain = estimated(raw, "bf16", "cuda")
    assert plain.total == plain.tensors + plain.driver
    assert plain.tensors == plain.weights + plain.optimizer + plain.batch + plain.activations + plain.backward
    assert plain.optimizer == 2 * plain.gradients
    assert plain.batch == 64 * 32 * 32 * (4 + 8)  # the image in float32, the label in int64
    raw["train"]["checkpoint_activations"] = True
    recomputed = estimated(raw, "bf16", "cuda")
    assert recomputed.activations < plain.activations
    assert recomputed.tensors < plain.tensors
    assert estimated(raw, "fp32", "cuda").activations > 1.3 * recomputed.activations


def test_accumulation_keeps_the_gradients_of_the_micro_batch_before() -> None:
    raw = {**tiny("nnunet_plain"), "train": {"global_batch": 1, "micro_batch": 1}}
    one = estimated(raw)
    raw["train"]["global_batch"] = 2
    two = estimated(raw)
    assert two.activations >= one.activations
    assert two.backward >= one.gradients
    raw["train"]["global_batch"] = 4
    assert estimated(raw) == two
