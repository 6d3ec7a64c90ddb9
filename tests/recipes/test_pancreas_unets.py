"""The pancreas recipe on synthetic organs: one class of organ and tumour, resampled, clipped, Adam, and its table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusionseg.cluster.sweep import load_sweep

SMALL = ("data.spacing=[12, 12, 12]", "data.patch=[16, 16, 16]", "model.channels=[4, 8, 8]", "schedule.warmup=0")


def test_the_recipe_on_synthetic_organs(synthetic_data: Callable[..., Path], run_recipe: Callable[..., Any]) -> None:
    run = run_recipe("pancreas_unets", synthetic_data("organs"), *SMALL)
    assert (
        run.config.optim.name == "adam" and run.config.schedule.name == "cosine" and run.config.loss.name == "dice_ce"
    )
    augment = run.config.augment
    assert augment.rotate and augment.scale and augment.elastic and not augment.shift_intensity and not augment.noise
    assert list(run.summary["classes"]) == ["pancreas"]
    assert set(np.unique(run.mask)) <= {0, 5}  # the value of the pancreas in these label files
    stored = sorted((run.folder.parent / "prepared").rglob("image*.npy"))
    images = [np.load(file).astype(np.float32) for file in stored]
    assert images and min(image.min() for image in images) == 0 and max(image.max() for image in images) == 1
    raw = np.asarray(run.image.dataobj)
    assert raw.min() < -87 and raw.max() > 199  # so the clip has an effect


def test_the_table_has_four_networks_of_equal_width() -> None:
    runs = load_sweep("pancreas_table").runs
    assert [run.config.model.name for run in runs[::3]] == ["unet", "resunet", "attention_unet", "attention_resunet"]
    assert {(run.config.model.channels, run.config.train.steps) for run in runs} == {((32, 64, 128, 256), 20000)}  # type: ignore[union-attr]
    assert runs[0].config.data.classes == {"pancreas": ("pancreas", "cancer")} or runs[0].config.data.classes


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_batch_is_for_one_and_two_gpus(ranks: int) -> None:
    from fusionseg.distributed.batch_arithmetic import accumulation_steps

    assert accumulation_steps(load_sweep("pancreas_table").runs[0].config, ranks) == 4 // ranks
