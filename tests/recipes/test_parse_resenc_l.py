"""The strong baseline on PARSE: nnU-Net's ResEnc L and its training, on the preparation of parse_fusion_od."""

from __future__ import annotations

import numpy as np
import pytest

from fusionseg import load_config
from fusionseg.runs.records import read_records


@pytest.fixture(scope="module")
def run(run_recipe, synthetic_data):
    network = ("model.channels=[4, 8, 8, 8]", "model.blocks=[1, 2, 1, 1]")
    reduced = ("data.spacing=null", "data.patch=[24, 24, 24]", "validate.overlap=0", *network)
    return run_recipe("parse_resenc_l", synthetic_data("vessels", size=48), *reduced)


def test_the_shipped_values_are_those_of_nnunet_on_the_preparation_of_the_thesis() -> None:
    config, thesis = load_config("parse_resenc_l"), load_config("parse_fusion_od")
    assert (config.model.name, config.model.channels) == ("resenc_unet", (32, 64, 128, 256, 320, 320))
    assert config.model.level_blocks == (1, 3, 4, 6, 6, 6)
    assert (config.data.patch, config.train.global_batch, config.train.steps) == ((192,) * 3, 2, 250_000)
    for key in ("spacing", "orientation", "intensity", "folds", "fold_seed"):
        assert getattr(config.data, key) == getattr(thesis.data, key)
    assert config.augment == load_config("parse_fusion_od", ["augment=nnunet"]).augment


def test_it_trains_with_momentum_and_a_polynomial_rate(run) -> None:
    assert (run.config.optim.name, run.config.optim.momentum) == ("sgd", 0.99)
    rates = [record["lr"] for record in read_records(run.folder) if record["kind"] == "train"]
    assert rates == pytest.approx([0.01, 0.01 * 0.5**0.9])
    assert list(run.summary["classes"]) == ["pulmonary_artery"]
    assert set(np.unique(run.mask)) <= {0, 1}
