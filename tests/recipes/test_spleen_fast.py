"""The spleen of MONAI's fast guide: RAS, 1.5 x 1.5 x 2 mm, -57 to 164 HU, U-Net, Dice and cross-entropy, Novograd."""

from __future__ import annotations

import numpy as np
import preparing
import pytest

from fusionseg import load_config
from fusionseg.runs.records import read_records


@pytest.fixture(scope="module")
def run(run_recipe, synthetic_data):
    # Voxels eight times as large as in the recipe, because the synthetic volumes have few of them.
    reduced = ("data.spacing=[12, 12, 16]", "data.patch=[16, 16, 16]", "model.channels=[8, 8, 8]")
    return run_recipe("spleen_fast", synthetic_data("organs"), *reduced, "data.samples_per_volume=2")


def test_the_shipped_values_are_those_of_the_guide() -> None:
    config = load_config("spleen_fast")
    assert (config.data.orientation, config.data.spacing, config.data.patch) == ("RAS", (1.5, 1.5, 2.0), (96, 96, 96))
    assert (config.data.intensity.mode, config.data.intensity.clip) == ("window", (-57, 164))
    assert (config.model.name, config.model.norm, config.loss.name) == ("monai_unet", "batch", "dice_ce")
    assert (config.data.samples_per_volume, config.train.global_batch, config.train.clip_grad) == (4, 16, None)


def test_the_volumes_are_resampled_turned_clipped_and_cropped(run) -> None:
    store = preparing.opened(run.config)
    assert store.labels == {0: "background", 1: "spleen"}
    for name, case in store.cases.items():
        image, label, _ = store.load(name)
        assert np.allclose(np.diag(np.array(case.affine))[:3], (12, 12, 16), atol=1e-6)  # positive: right, front, head
        assert image.min() == 0 and image.max() == 1 and set(np.unique(label)) == {0, 1}
        for axis in range(3):  # each face of the box touches a voxel above -57 HU
            first, last = np.take(image[0], [0, -1], axis=axis).transpose(axis, *({0, 1, 2} - {axis}))
            assert first.max() > 0 and last.max() > 0


def test_it_trains_with_novograd_at_a_constant_rate_and_scores_the_spleen(run) -> None:
    assert run.config.optim.name == "novograd"
    rates = [record["lr"] for record in read_records(run.folder) if record["kind"] == "train"]
    assert rates == [2e-3, 2e-3]
    assert list(run.summary["classes"]) == ["spleen"] and run.summary["cases"] == 2
    assert set(np.unique(run.mask)) <= {0, 1}
