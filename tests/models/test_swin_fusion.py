"""Swin Fusion UNETR: sizes against the thesis, the plain network against MONAI's, gradients everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor, nn

from fusionseg.config.networks import FUSION_PRESETS, SwinConfig
from fusionseg.models import build_model

NAMES = ["swin_unetr", *FUSION_PRESETS]
SMALL: dict[str, Any] = {"feature_size": 12, "depths": (1, 1, 1, 1)}
SHAPE = (1, 1, 64, 32, 32)  # two voxels at 1/32, the least that instance norm takes

# name: exact count, the count expected (millions), the thesis's Table 2 (millions, None where it has none).
# 1 channel in, 2 out, feature size 48.
PARAMETERS = {
    "swin_unetr": (62_186_708, 62.19, 62.3),
    "swin_fusion_1_v1": (62_972_372, 62.97, 62.7),
    "swin_fusion_2_v1": (63_073_748, 63.07, 63.0),
    "swin_fusion_2_v2": (65_673_002, 65.7, 66.0),
    "swin_fusion_2_v2_k3": (79_574_474, 79.6, 80.0),
    "swin_fusion_od": (44_700_074, 44.7, 45.4),
    "swin_fusion_od_k3": (89_767_850, 89.8, 89.0),
    "swin_fusion_od_large": (46_897_748, 46.9, 47.4),
}


def build(name: str, *, in_channels: int = 1, checkpoint: bool = False, **settings: Any) -> nn.Module:
    config = SwinConfig.model_validate({"name": name, **settings})
    return build_model(config, in_channels=in_channels, out_channels=2, checkpoint_activations=checkpoint)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad(set_to_none=True)
    model(x).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_every_variant_has_a_count() -> None:
    assert list(PARAMETERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_meta_forward_at_full_size(name: str) -> None:
    with torch.device("meta"):
        model = build(name, drop_path_rate=0.1).train()
        logits = model(torch.empty(1, 1, 96, 96, 96))
    assert logits.shape == (1, 2, 96, 96, 96)
    assert all(x.is_meta for x in model.state_dict().values())
    count = sum(parameter.numel() for parameter in model.parameters())
    exact, expected, thesis = PARAMETERS[name]
    assert count == exact
    assert count == pytest.approx(expected * 1e6, rel=0.005)
    assert count == pytest.approx(thesis * 1e6, rel=0.02)


@pytest.mark.parametrize("in_channels", [1, 4])
def test_plain_is_monais_swin_unetr(in_channels: int) -> None:
    torch.manual_seed(0)
    ours = build("swin_unetr", feature_size=12, in_channels=in_channels).eval()
    monais = SwinUNETR(in_channels=in_channels, out_channels=2, feature_size=12).eval()
    assert list(ours.state_dict()) == list(monais.state_dict())
    x = torch.randn(1, in_channels, *SHAPE[2:])
    with torch.no_grad():
        ours.load_state_dict(monais.state_dict(), strict=True)
        torch.testing.assert_close(ours(x), monais(x), rtol=0, atol=1e-5)
        other_way = SwinUNETR(in_channels=in_channels, out_channels=2, feature_size=12).eval()
        other_way.load_state_dict(ours.state_dict(), strict=True)
        torch.testing.assert_close(ours(x), other_way(x), rtol=0, atol=1e-5)


def test_fused_variants_keep_the_plain_networks_names() -> None:
    with torch.device("meta"):
        plain = set(build("swin_unetr", **SMALL).state_dict())
        for name in FUSION_PRESETS:
            fused = set(build(name, **SMALL).state_dict())
            lost = {key.split(".")[0] for key in plain - fused}
            assert lost == ({"encoder10"} if "_od" in name else set())
            assert {key.split(".")[0] for key in fused - plain} == {"fusion"}


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    # What DDP asks for without find_unused_parameters.
    torch.manual_seed(0)
    found = gradients(build(name, **SMALL).train(), torch.randn(SHAPE))
    assert [key for key, gradient in found.items() if gradient is None] == []
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("name", ["swin_fusion_2_v1", "swin_fusion_od"])
def test_checkpointing_changes_memory_only(name: str) -> None:
    torch.manual_seed(0)
    plain = build(name, **SMALL).train()
    checkpointed = build(name, checkpoint=True, **SMALL).train()
    checkpointed.load_state_dict(plain.state_dict())
    x = torch.randn(SHAPE)
    expected, found = gradients(plain, x), gradients(checkpointed, x)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient)


def test_several_channels_and_samples() -> None:
    model = build("swin_fusion_od_large", in_channels=3, **SMALL).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, *SHAPE[2:])).shape == (2, 2, *SHAPE[2:])


def test_wrong_size_is_refused_with_the_reason() -> None:
    with torch.device("meta"):
        model = build("swin_fusion_od", **SMALL)
        with pytest.raises(ValueError, match=r"multiples of 32.*\(64, 48, 32\)"):
            model(torch.empty(1, 1, 64, 48, 32))


def test_drop_path_rises_to_its_rate_also_from_the_meta_device() -> None:
    with torch.device("meta"):
        model = build("swin_unetr", drop_path_rate=0.4, **SMALL)
    rates = [layer.drop_prob for layer in model.modules() if hasattr(layer, "drop_prob")]
    assert rates == pytest.approx([0.4 / 3, 0.8 / 3, 0.4])  # the first block has rate 0, so no layer
