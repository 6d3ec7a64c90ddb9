"""The brain tumours of MONAI's fast guide: SegResNet, three overlapping regions, Dice and focal loss, Novograd."""

from __future__ import annotations

import numpy as np
import preparing
import pytest

from fusionseg import load_config
from fusionseg.runs.records import read_records

REGIONS = ["whole_tumour", "tumour_core", "enhancing"]


@pytest.fixture(scope="module")
def run(run_recipe, synthetic_data):
    # Voxels twelve times as large as in the recipe, because the synthetic volumes have few of them.
    reduced = ("data.spacing=[12, 12, 12]", "data.patch=[16, 16, 16]", "train.micro_batch=1")
    small = ("model.init_filters=8", "model.blocks_down=[1, 1]", "model.blocks_up=[1]")
    return run_recipe("brain_tumours_fast", synthetic_data("regions"), *reduced, *small)


def test_the_shipped_values_are_those_of_the_guide() -> None:
    config = load_config("brain_tumours_fast")
    assert (config.data.orientation, config.data.spacing, config.data.patch) == ("RAS", (1, 1, 1), (224, 224, 144))
    assert (config.model.name, config.loss.name, config.optim.name) == ("segresnet", "dice_focal", "novograd")
    assert (config.model.blocks_down, config.model.blocks_up) == ((1, 2, 2, 4), (1, 1, 1))
    assert (config.validation.overlap, config.train.global_batch, config.data.foreground) == (0.6, 8, 0)


def test_each_channel_is_normalised_by_its_voxels_that_are_not_zero(run) -> None:
    store = preparing.opened(run.config)
    assert store.channels == ("FLAIR", "T1w", "t1gd", "T2w")
    for name, case in store.cases.items():
        image = store.image(name).astype(np.float64)
        assert np.allclose(np.diag(np.array(case.affine))[:3], 12, atol=1e-6)  # positive: RAS
        assert len(image) == 4
        for channel in image:
            brain = channel[channel != 0]
            assert brain.size < 0.8 * channel.size  # the air stays 0
            assert abs(brain.mean()) < 0.01 and abs(brain.std() - 1) < 0.01


def test_the_outputs_are_three_overlapping_regions(run) -> None:
    assert list(run.summary["classes"]) == REGIONS
    scores = run.summary["scores"]
    for case in {score["case"] for score in scores}:
        voxels = [score["voxels_true"] for score in scores if score["case"] == case]
        assert voxels[0] > voxels[1] > voxels[2] > 0  # in the order of REGIONS, each within the one before
    # Masks have the values of the label files again: oedema, non-enhancing, enhancing.
    assert set(np.unique(run.mask)) <= {0, 1, 2, 3}


def test_the_rate_of_novograd_falls_as_a_cosine(run) -> None:
    rates = [record["lr"] for record in read_records(run.folder) if record["kind"] == "train"]
    assert rates == pytest.approx([1e-3, 0.5e-3])
    assert run.config.validation.overlap == 0.6
