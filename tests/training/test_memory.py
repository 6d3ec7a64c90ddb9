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
    with LiveTensors() as live:
        first = torch.zeros(100)
        view = first.view(10, 10)
        second = first + 1
        assert live.live == 800
        del first
        assert live.live == 800  # the view holds the storage
        del view, second
        assert live.live == 0
    assert live.peak == 800


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("unet", {}),
        ("swin_fusion_od", {}),
        ("swin_fusion_od", {"checkpoint_activations": True}),
        ("monai_unet", {"global_batch": 4, "micro_batch": 2}),
    ],
)
def test_estimate_is_within_15_percent_of_the_real_step(name: str, settings: dict[str, Any], precision: str) -> None:
    raw = {**tiny(name), "train": {"global_batch": 1, "micro_batch": 1, **settings}}
    measured = measured_step_bytes(validate(raw), precision, in_channels=1, out_channels=2)
    assert estimated(raw, precision).tensors == pytest.approx(measured, rel=0.15)
