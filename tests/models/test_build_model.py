"""build_model builds a network of every name of the configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from fusionseg.config import ModelConfig
from fusionseg.models import build_model
from fusionseg.models.swin.fusion_config import FUSION_PRESETS

MODEL_CONFIG: TypeAdapter[Any] = TypeAdapter(ModelConfig)
SMALL: dict[str, dict[str, Any]] = {
    **{name: {"feature_size": 12, "depths": [1, 1, 1, 1]} for name in ("swin_unetr", *FUSION_PRESETS)},
    **{name: {"channels": [4, 8, 16]} for name in ("unet", "resunet", "attention_unet", "attention_resunet")},
    "monai_unet": {"channels": [4, 8, 16]},
    "segresnet": {"init_filters": 8},
}


@pytest.mark.parametrize("name", SMALL)
def test_every_network_builds(name: str) -> None:
    config = MODEL_CONFIG.validate_python({"name": name, **SMALL[name]})
    with torch.device("meta"):
        model = build_model(config, in_channels=2, out_channels=3)
        assert model(torch.empty(1, 2, 64, 32, 32)).shape == (1, 3, 64, 32, 32)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "unet", "channels": [4, 8], "dropout": 0.2},
        {"name": "monai_unet"},
        {"name": "monai_unet", "channels": [4, 8, 16], "strides": [2, 1], "num_res_units": 0, "norm": "batch"},
        {"name": "monai_unet", "channels": [4, 8], "dropout": 0.2},
        {"name": "segresnet", "blocks_down": [1, 1], "blocks_up": [1], "init_filters": 8, "dropout": 0.2},
    ],
)
def test_convolutional_networks_train(settings: dict[str, Any]) -> None:
    model = build_model(MODEL_CONFIG.validate_python(settings), in_channels=1, out_channels=2).train()
    logits = model(torch.randn(1, 1, 32, 32, 32))
    assert logits.shape == (1, 2, 32, 32, 32)
    logits.square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    has_batch_norm = any(isinstance(layer, nn.BatchNorm3d) for layer in model.modules())
    assert has_batch_norm == (settings.get("norm") == "batch")
    # MONAI's UNet has dropout layers with rate 0.
    rates = {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout | nn.Dropout3d)}
    assert rates <= {0.0} if "dropout" not in settings else rates == {0.2}
