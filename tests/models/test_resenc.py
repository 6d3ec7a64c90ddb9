"""Residual-encoder U-Net: nnU-Net's outputs, names and weights; fused skips for any strides and number of levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from fusionseg.models import build_model
from fusionseg.models.cost import network_cost
from fusionseg.models.networks.resenc import ResEncConfig
from fusionseg.models.resenc.blocks import ResidualBlock
from fusionseg.models.weights.loading import load_weights, read_state

# Thick slices: the first level is not halved along the last axis, and has a flat kernel.
FLAT: dict[str, Any] = {
    "channels": [4, 8, 8, 12],
    "blocks": [1, 3, 2, 2],
    "kernels": [[3, 3, 1], 3, 3, 3],
    "strides": [[2, 2, 1], 2, [2, 1, 2]],
}
PATCH = (16, 16, 8)


def config(name: str = "resenc_unet", **settings: Any) -> ResEncConfig:
    return ResEncConfig.model_validate({"name": name, **settings})


def build(name: str = "resenc_unet", *, checkpoint: bool = False, **settings: Any) -> Any:
    torch.manual_seed(0)
    section = config(name, **settings)
    return build_model(section, in_channels=2, out_channels=3, checkpoint_activations=checkpoint)


def randomised(model: nn.Module) -> nn.Module:
    """Give all parameters random values: new residual blocks only pass their shortcut on."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def volume() -> Tensor:
    return torch.randn(2, 2, *PATCH, generator=torch.Generator().manual_seed(2))


def nnunet_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict as nnU-Net writes it: biases before norms, each tensor under all of its names, axes Z, Y, X."""
    named = dict(state)
    for name, x in state.items():
        if name.endswith(".conv.weight"):
            named[name.replace("weight", "bias")] = torch.randn(len(x))
    for name, x in list(named.items()):
        part, kind = name.rsplit(".", 2)[1:] if ".conv." in name or ".norm." in name else ("", "")
        if part:
            named[name.replace(f".{part}.{kind}", f".all_modules.{0 if part == 'conv' else 1}.{kind}")] = x
    named |= {f"decoder.{name}": x for name, x in named.items() if name.startswith("encoder.")}
    return {name: x.permute(0, 1, 4, 3, 2) if x.ndim == 5 else x for name, x in named.items()}


def test_it_has_the_outputs_and_names_of_nnunet() -> None:
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    theirs = randomised(
        unet.ResidualEncoderUNet(
            input_channels=2,
            n_stages=4,
            features_per_stage=FLAT["channels"],
            conv_op=nn.Conv3d,
            kernel_sizes=[[3, 3, 1], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
            strides=[[1, 1, 1], [2, 2, 1], [2, 2, 2], [2, 1, 2]],
            n_blocks_per_stage=FLAT["blocks"],
            num_classes=3,
            n_conv_per_stage_decoder=[1, 1, 1],
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=True,
        )
    )
    ours = build(**FLAT)
    assert load_weights(ours, theirs.state_dict(), min_share=1).missing == ()
    for found, expected in zip(ours.train()(volume()), theirs.train()(volume())[:2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_number_of_parameters_is_that_of_nnunet() -> None:
    """Counted with nnU-Net's code (dynamic_network_architectures 0.4.4) for 1 channel and 3 classes: 102 350 575. Here
    there are no biases before norms (13 056), and no lowest head, whose weight in nnU-Net's loss is 0 (963)."""
    with torch.device("meta"):
        model = build_model(config(), in_channels=1, out_channels=3)
    assert sum(x.numel() for x in model.parameters()) == 102_350_575 - 13_056 - 963


def test_residual_block_equals_its_definition() -> None:
    block: Any = randomised(ResidualBlock(4, 6, (3, 3, 1), (2, 2, 1)))
    x = torch.randn(2, 4, 8, 8, 8)

    def normed(part: Any, y: Tensor) -> Tensor:
        return F.instance_norm(y, weight=part.norm.weight, bias=part.norm.bias)

    inner = F.leaky_relu(normed(block.conv1, F.conv3d(x, block.conv1.conv.weight, None, (2, 2, 1), (1, 1, 0))), 0.01)
    main = normed(block.conv2, F.conv3d(inner, block.conv2.conv.weight, None, 1, (1, 1, 0)))
    short = normed(block.skip[1], F.conv3d(F.avg_pool3d(x, (2, 2, 1)), block.skip[1].conv.weight))
    torch.testing.assert_close(block(x), F.leaky_relu(main + short, 0.01))


def test_new_residual_blocks_pass_their_shortcut_on() -> None:
    encoder = build(**FLAT).encoder
    x = torch.rand(1, 4, *PATCH)
    with torch.no_grad():
        torch.testing.assert_close(encoder.stages[0].blocks(x), x)


def test_checkpoints_of_nnunet_are_loaded_with_their_axes(tmp_path: Path) -> None:
    """nnU-Net's volumes have the axes Z, Y, X, so its kernels have them too."""
    source, model = randomised(build(**FLAT)).eval(), build(**FLAT).eval()
    content = {"network_weights": nnunet_names(source.state_dict()), "current_epoch": 1000}
    torch.save(content, tmp_path / "checkpoint_final.pth")
    report = load_weights(model, read_state(tmp_path / "checkpoint_final.pth"), min_share=1)
    assert (report.matched, report.unexpected) == (report.total, ())
    with torch.no_grad():
        assert torch.equal(model(volume()), source(volume()))

    # A plan whose slices are stacked along Y: nnU-Net's network then has the axes Y, Z, X.
    turned = {n: x.permute(0, 1, 3, 2, 4) if x.ndim == 5 else x for n, x in content["network_weights"].items()}
    plans = {"init_args": {"plans": {"transpose_forward": [1, 0, 2]}}}
    torch.save({"network_weights": turned, **plans}, tmp_path / "checkpoint_final.pth")
    load_weights(model := build(**FLAT).eval(), read_state(tmp_path / "checkpoint_final.pth"), min_share=1)
    with torch.no_grad():
        assert torch.equal(model(volume()), source(volume()))


@pytest.mark.parametrize(
    "fusion",
    [
        {"source": "encoder", "above": "all", "last_stage": 4},
        {"source": "skip", "above": 2, "pooling": "maxavg"},
        {"above": 1, "below": "all", "widths": 5, "kernel": 3},
    ],
)
def test_fused_skips_equal_the_definition_with_direct_resampling(fusion: dict[str, Any]) -> None:
    """The scales of the levels are 1, (2, 2, 1), (4, 4, 2) and (8, 4, 4)."""
    # The keys of the variant that are not given here have their default.
    model = build("resenc_fusion_2_v2", **FLAT, fusion=fusion).eval()
    scales = [(1, 1, 1), (2, 2, 1), (4, 4, 2), (8, 4, 4)]
    settings, module = config("resenc_fusion_2_v2", **FLAT, fusion=fusion).fusion, model.fusion
    assert settings is not None
    maps = [
        torch.randn(1, c, *(n // s for n, s in zip((32, 32, 16), scale, strict=True)))
        for c, scale in zip(FLAT["channels"], scales, strict=True)
    ]

    def direct(source: int, target: int) -> list[Tensor]:
        x = maps[source - 1]
        if settings.source == "encoder":
            x = module.sources[f"stage{source}"](x)
        pairs = list(zip(scales[source - 1], scales[target - 1], strict=True))
        if source > target:
            factors = [here / there for here, there in pairs]
            return [F.interpolate(x, scale_factor=factors, mode="trilinear", align_corners=False)]
        factor = [there // here for here, there in pairs]
        pools = {"max": [F.max_pool3d], "maxavg": [F.max_pool3d, F.avg_pool3d]}[settings.pooling]
        return [pool(x, factor) for pool in pools]

    with torch.no_grad():
        fused = module(maps, maps)
        for stage, x in enumerate(fused, start=1):
            sources = settings.sources_of(4).get(stage)
            assert (sources is None) == (x is maps[stage - 1])
            if sources is not None:
                joined = torch.cat([maps[stage - 1], *(y for s in sources for y in direct(s, stage))], dim=1)
                torch.testing.assert_close(x, module.fuse[f"stage{stage}"](joined), rtol=1e-4, atol=1e-5)


def test_a_variant_fuses_down_to_the_bottleneck_of_any_depth() -> None:
    for levels in (3, 4, 7):
        settings = config("resenc_fusion_od", channels=[8] * levels, deep_supervision=levels > 3).fusion
        assert settings is not None
        assert settings.sources_of(levels)[levels] == tuple(range(1, levels))
    settings = config("resenc_fusion_2_v2", channels=[8] * 4, fusion={"source": "skip"}).fusion
    assert settings is not None
    assert (settings.source, settings.above, settings.sources_of(4)) == ("skip", 2, {2: (1,), 3: (1, 2)})


def test_a_bridge_over_thick_slices_starts_as_the_plain_network() -> None:
    bridge = {"stages": [2, 3, 4], "grid": 4, "width": 6, "heads": 2, "depth": 1}
    plain = build("resenc_fusion_2_v2", **FLAT, fusion={"bridge": None}).eval()
    bridged = build("resenc_fusion_2_v2", **FLAT, fusion={"bridge": bridge}).eval()
    bridged.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(bridged(volume()), plain(volume()))
        for layer in bridged.fusion.bridge.expand.values():
            nn.init.normal_(layer.weight)
        assert not torch.equal(bridged(volume()), plain(volume()))


@pytest.mark.parametrize("name", ["resenc_unet", "resenc_fusion_od"])
def test_checkpointed_activations_take_less_memory_and_give_equal_gradients(name: str) -> None:
    gradients = []
    for checkpoint in (False, True):
        model = randomised(build(name, checkpoint=checkpoint, **FLAT)).train()
        sum(x.square().mean() for x in model(volume())).backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])
    costs = [
        network_cost(config(name, **FLAT), PATCH, in_channels=2, out_channels=3, checkpoint_activations=checkpoint)
        for checkpoint in (False, True)
    ]
    assert costs[1].activation_bytes < 0.7 * costs[0].activation_bytes


def test_patches_are_multiples_of_the_strides() -> None:
    section = config(**FLAT)
    assert section.patch_problem((16, 16, 8)) is None
    problem = section.patch_problem((15, 18, 8))
    assert problem == (
        "data.patch: resenc_unet needs multiples of [8, 4, 4], at least twice that in one axis, not [15, 18, 8]: try"
        " [16, 16, 8]"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": [8, 8]}, r"channels: expected at least three levels .*got \[8, 8\]"),
        (
            {"channels": [8] * 3},
            r"deep_supervision: needs at least 4 levels .*got channels \[8, 8, 8\]; set it to false",
        ),
        ({"blocks": [1, 3]}, r"blocks: expected 6 integers from 1, .*got \[1, 3\]"),
        ({"kernels": [3, 3, 3, 3, 3, 2]}, "kernels: expected 6 odd numbers"),
        ({"strides": [2, 2]}, "strides: expected 5 entries, one fewer than channels"),
        ({"fusion": {"above": 1}}, "fusion: resenc_unet has plain skips; .*resenc_fusion_"),
        ({"name": "resenc_fusion_od", "fusion": {"last_stage": 4}}, "fusion.last_stage: expected 5, or 6 .*got 4"),
        ({"name": "resenc_fusion_2_v2", "fusion": {"stages": [2, 6]}}, "fusion.stages: 6 .*set last_stage: 6"),
        ({"name": "resenc_fusion_2_v2", "fusion": {"widths": [4, 4]}}, "fusion.widths: expected 4 positive"),
        (
            {"name": "resenc_fusion_2_v2", "channels": [8] * 4, "fusion": {"bridge": {}}},
            r"fusion.bridge.stages: expected some of the stages 2 to 4 .*got \[3, 4, 5, 6\]",
        ),
        (
            {
                "name": "resenc_fusion_2_v2",
                "channels": [8] * 3,
                "deep_supervision": False,
                "fusion": {"bridge": {"stages": [2, 3], "grid": 4}},
            },
            "fusion.bridge.grid: a bridge needs a network of at least 4 stages, got 3",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**settings)
