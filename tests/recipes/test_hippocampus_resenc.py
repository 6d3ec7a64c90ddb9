"""The residual-encoder U-Net on small MRI volumes with two labels: nnU-Net's levels for the patch, heads at two."""

from __future__ import annotations

import numpy as np
import pytest

from fusionseg import load_config


@pytest.fixture(scope="module")
def run(run_recipe, synthetic_data):
    reduced = ("data.patch=[16, 16, 8]", "model.channels=[4, 8, 8, 8]", "data.classes=[liver, spleen]")
    return run_recipe("hippocampus_resenc", synthetic_data("organs"), *reduced)


def test_it_differs_from_the_unet_only_in_network_patch_and_steps() -> None:
    config, unet = load_config("hippocampus_resenc"), load_config("hippocampus_unet")
    assert config.data.model_copy(update={"patch": unet.data.patch}) == unet.data
    assert (config.augment, config.optim, config.loss) == (unet.augment, unet.optim, unet.loss)
    assert config.model.patch_problem(config.data.patch) is None
    assert len(config.model.channels) == 4 and config.model.deep_supervision


@pytest.mark.long  # test_parse_resenc_l trains the same network
def test_it_trains_scores_and_predicts_both_labels(run) -> None:
    assert list(run.summary["classes"]) == ["liver", "spleen"] and run.summary["cases"] == 2
    assert set(np.unique(run.mask)) <= {0, 1, 2}
