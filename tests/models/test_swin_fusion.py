"""Swin Fusion UNETR: parameter counts of the thesis, the plain network against MONAI's, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor, nn

from fusionseg.models import build_model
from fusionseg.models.cost import saved_bytes
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.models.swin.fusion_config import FUSION_PRESETS

NAMES = ["swin_unetr", "swin_unetr_v2", *FUSION_PRESETS]
SMALL: dict[str, Any] = {"feature_size": 12, "depths": (1, 1, 1, 1)}
SHAPE = (1, 1, 64, 32, 32)  # two voxels at 1/32, the minimum for instance norm

# name: exact count, expected count in millions, count in millions in the thesis's Table 2 (None if it has none).
# For 1 input channel, 2 classes and feature size 48.
PARAMETERS = {
    "swin_unetr": (62_186_708, 62.19, 62.3),
    "swin_unetr_v2": (72_762_068, 72.76, None),
    "swin_fusion_1_v1": (62_972_372, 62.97, 62.7),
    "swin_fusion_2_v1": (63_073_748, 63.07, 63.0),
    "swin_fusion_2_v2": (65_673_002, 65.7, 66.0),
    "swin_fusion_2_v2_k3": (79_574_474, 79.6, 80.0),
    "swin_fusion_2_v2_maxavg": (65_958_986, 65.96, None),
    "swin_fusion_od": (44_700_074, 44.7, 45.4),
    "swin_fusion_od_k3": (89_767_850, 89.8, 89.0),
    "swin_fusion_od_large": (46_897_748, 46.9, 47.4),
    "swin_fusion_full": (66_604_500, 66.60, None),
    "swin_fusion_bridge": (65_554_484, 65.55, None),
}


def build(name: str, *, in_channels: int = 1, checkpoint: bool = False, **settings: Any) -> nn.Module:
    config = SwinConfig.model_validate({"name": name, **settings})
    return build_model(config, in_channels=in_channels, out_channels=2, checkpoint_activations=checkpoint)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad(set_to_none=True)
    model(x).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_every_variant_is_in_the_table() -> None:
    assert list(PARAMETERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters_at_full_size(name: str) -> None:
    with torch.device("meta"):
        model = build(name, drop_path_rate=0.1).train()
        logits = model(torch.empty(1, 1, 96, 96, 96))
    assert logits.shape == (1, 2, 96, 96, 96)
    assert all(x.is_meta for x in model.state_dict().values())
    count = sum(parameter.numel() for parameter in model.parameters())
    exact, expected, thesis = PARAMETERS[name]
    assert count == exact
    assert count == pytest.approx(expected * 1e6, rel=0.005)
    assert thesis is None or count == pytest.approx(thesis * 1e6, rel=0.02)


@pytest.mark.parametrize(("name", "in_channels"), [("swin_unetr", 4), ("swin_unetr_v2", 1)])
def test_plain_network_is_that_of_monai(name: str, in_channels: int) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"feature_size": 12, "window_size": 4, "depths": (2, 1, 1, 1)}
    ours = build(name, in_channels=in_channels, **settings)
    monais = SwinUNETR(in_channels, 2, use_v2=name == "swin_unetr_v2", **settings)
    assert list(ours.state_dict()) == list(monais.state_dict())
    ours.load_state_dict(monais.state_dict(), strict=True)
    monais.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(1, in_channels, *SHAPE[2:])
    with torch.no_grad():
        torch.testing.assert_close(ours(x), monais(x), rtol=0, atol=2e-5)
    # In float64: norms over two voxels, as in the bottleneck here, amplify rounding errors.
    expected, found = gradients(monais.double(), x.double()), gradients(ours.double(), x.double())
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-9)


def test_fused_variants_have_the_tensor_names_of_the_plain_network() -> None:
    with torch.device("meta"):
        plain = set(build("swin_unetr", **SMALL).state_dict())
        for name in FUSION_PRESETS:
            fused = set(build(name, **SMALL).state_dict())
            lost = {key.split(".")[0] for key in plain - fused}
            assert lost == ({"encoder10"} if "_od" in name else set())
            assert {key.split(".")[0] for key in fused - plain} == {"fusion"}


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    # DDP needs this without find_unused_parameters.
    torch.manual_seed(0)
    found = gradients(build(name, **SMALL).train(), torch.randn(SHAPE))
    assert [key for key, gradient in found.items() if gradient is None] == []
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("name", ["swin_fusion_od"])
def test_checkpointing_has_equal_gradients(name: str) -> None:
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


def test_volume_of_wrong_size_is_refused() -> None:
    with torch.device("meta"):
        model = build("swin_fusion_od", **SMALL)
        with pytest.raises(ValueError, match=r"multiples of 32.*\(64, 48, 32\)"):
            model(torch.empty(1, 1, 64, 48, 32))


def test_stochastic_depth_rises_linearly_on_the_meta_device_too() -> None:
    with torch.device("meta"):
        model = build("swin_unetr", drop_path_rate=0.4, **SMALL)
    rates = [layer.drop_prob for layer in model.modules() if hasattr(layer, "drop_prob")]
    assert rates == pytest.approx([0.4 / 3, 0.8 / 3, 0.4])  # the first block has rate 0 and no layer


def test_residual_stages_in_a_fused_network() -> None:
    with torch.device("meta"):
        plain = build("swin_fusion_od", **SMALL).state_dict()
        with_blocks = build("swin_fusion_od", residual_stages=True, **SMALL).state_dict()
    added = {key.split(".")[1] for key in with_blocks.keys() - plain.keys()}
    assert added == {"layers1c", "layers2c", "layers3c", "layers4c"}
    assert plain.keys() < with_blocks.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "swin_unetr", "residual_stages": True}, "use swin_unetr_v2"),
        ({"name": "swin_unetr_v2", "residual_stages": False}, "use swin_unetr"),
        ({"name": "swin_unetr_v2", "fusion": {}}, "swin_unetr_v2 has plain skips"),
        ({"name": "swin_unetr", "checkpoint_stages": [2, 1]}, "rising order"),
        ({"name": "swin_unetr", "checkpoint_stages": [5]}, "stages 1 to 4"),
    ],
)
def test_inconsistent_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwinConfig.model_validate(settings)


def test_network_keeps_less_than_half_of_the_activations_of_monai() -> None:
    kept = []
    for name in ("monai", "swin_unetr"):
        model = SwinUNETR(1, 2, feature_size=12) if name == "monai" else build(name, feature_size=12)
        model, x = model.to("meta"), torch.empty(1, 1, 64, 64, 64, device="meta")
        kept.append(saved_bytes(model, lambda model=model, x=x: model(x)))  # type: ignore[misc]
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_network_has_the_same_output() -> None:
    torch.manual_seed(0)
    model = build("swin_unetr", window_size=4, **SMALL).eval()
    x = torch.randn(SHAPE)
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(SHAPE), check_trace=False)  # type: ignore[no-untyped-call]
        torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-4)
    assert "PythonOp" not in str(traced.inlined_graph)
