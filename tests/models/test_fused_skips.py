"""FusedSkips: each setting changes what it says; pooling, sharing and channels are as the thesis has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionseg.config.networks import FusionConfig, SwinConfig
from fusionseg.models import build_model
from fusionseg.models.fusion import FusedSkips, fusion_plan

ENCODER = (1, 48, 96, 192, 384, 768)  # feature size 48, one channel in
SKIPS = (48, 48, 96, 192, 384, 768)


def fused_skips(**settings: object) -> FusedSkips:
    with torch.device("meta"):
        return FusedSkips(FusionConfig.model_validate(settings), ENCODER, SKIPS)


def first_convolutions(blocks: nn.ModuleDict) -> dict[str, tuple[int, int, int]]:
    """Channels in, channels out and kernel of each block."""
    named: Iterable[tuple[str, Any]] = blocks.items()
    shapes = {stage: block.layer.conv1.conv.weight.shape for stage, block in named}
    return {stage: (shape[1], shape[0], shape[-1]) for stage, shape in shapes.items()}


def test_plan() -> None:
    assert fusion_plan(FusionConfig(above=1)) == {2: (1,), 3: (2,), 4: (3,), 5: (4,)}
    # Two above: stage 2 has only stage 1 above it.
    assert fusion_plan(FusionConfig(above=2)) == {2: (1,), 3: (1, 2), 4: (2, 3), 5: (3, 4)}
    everything = {2: (1,), 3: (1, 2), 4: (1, 2, 3), 5: (1, 2, 3, 4), 6: (1, 2, 3, 4, 5)}
    assert fusion_plan(FusionConfig(above="all", last_stage=6)) == everything


def test_v1_pools_the_skips_and_has_no_blocks_for_it() -> None:
    module = fused_skips(above=1, source="skip")
    assert len(module.sources) == 0
    assert first_convolutions(module.fuse) == {
        "stage2": (48 + 48, 48, 1),
        "stage3": (96 + 48, 96, 1),
        "stage4": (192 + 96, 192, 1),
        "stage5": (384 + 192, 384, 1),
    }


def test_v2_pools_the_encoders_maps_through_a_block_of_each_source() -> None:
    module = fused_skips(above=2, source="encoder")
    assert first_convolutions(module.sources) == {
        "stage1": (1, 1, 3),
        "stage2": (48, 48, 3),
        "stage3": (96, 96, 3),
        "stage4": (192, 192, 3),
    }
    assert first_convolutions(module.fuse) == {
        "stage2": (48 + 1, 48, 1),
        "stage3": (96 + 48 + 1, 96, 1),
        "stage4": (192 + 96 + 48, 192, 1),
        "stage5": (384 + 192 + 96, 384, 1),
    }


def test_kernel_is_that_of_the_upper_stages_and_bottleneck_kernel_that_of_stage_6() -> None:
    kernels = [
        [kernel for _, _, kernel in first_convolutions(fused_skips(last_stage=6, **given).fuse).values()]
        for given in ({}, {"kernel": 3}, {"bottleneck_kernel": 3})
    ]
    assert kernels == [[1, 1, 1, 1, 1], [3, 3, 3, 3, 1], [1, 1, 1, 1, 3]]


def test_overdrive_fuses_the_bottleneck_in_place_of_the_plain_block() -> None:
    bottleneck = first_convolutions(fused_skips(last_stage=6).fuse)["stage6"]
    assert bottleneck == (768 + 384 + 192 + 96 + 48 + 1, 768, 1)
    with torch.device("meta"):
        model = build_model(SwinConfig(name="swin_fusion_od"), in_channels=1, out_channels=2)
    assert isinstance(model.encoder10, nn.Identity)


def test_widths_are_those_of_the_pooled_maps() -> None:
    module = fused_skips(last_stage=6, widths=[96, 96, 192, 192, 384])
    assert first_convolutions(module.sources) == {
        "stage1": (1, 96, 3),
        "stage2": (48, 96, 3),
        "stage3": (96, 192, 3),
        "stage4": (192, 192, 3),
        "stage5": (384, 384, 3),
    }
    assert first_convolutions(module.fuse)["stage3"] == (96 + 96 + 96, 96, 1)


def test_maxavg_doubles_the_pooled_channels() -> None:
    blocks = first_convolutions(fused_skips(above=2, pooling="maxavg").fuse)
    assert blocks["stage3"] == (96 + 2 * (48 + 1), 96, 1)


@pytest.mark.parametrize("source", ["skip", "encoder"])
@pytest.mark.parametrize("pooling", ["max", "avg", "maxavg"])
@pytest.mark.parametrize("above", [1, 2, "all"])
def test_equals_the_definition_with_direct_pooling(source: str, pooling: str, above: object) -> None:
    torch.manual_seed(0)
    encoder_channels, skip_channels = (1, 2, 3, 4, 5, 6), (2, 2, 3, 4, 5, 6)
    settings = {"source": source, "pooling": pooling, "above": above, "last_stage": 6}
    config = FusionConfig.model_validate(settings)
    module = FusedSkips(config, encoder_channels, skip_channels)
    seen: dict[str, Tensor] = {}
    for stage, block in module.fuse.items():
        hooked: Any = block
        hooked.register_forward_pre_hook(lambda _m, args, stage=stage: seen.update({stage: args[0]}))
    sizes = [(64 >> i, 64 >> i, 32 >> i) for i in range(6)]
    encoder_maps = [torch.randn(1, c, *size) for c, size in zip(encoder_channels, sizes, strict=True)]
    skips = [torch.randn(1, c, *size) for c, size in zip(skip_channels, sizes, strict=True)]

    def direct(stage: int, target: int) -> list[Tensor]:
        x = skips[stage - 1]
        if source == "encoder":
            x = module.sources[f"stage{stage}"](encoder_maps[stage - 1])
        by = 2 ** (target - stage)
        maximum, mean = F.max_pool3d(x, by), F.avg_pool3d(x, by)
        return {"max": [maximum], "avg": [mean], "maxavg": [maximum, mean]}[pooling]

    with torch.no_grad():
        fused = module(encoder_maps, skips)
        assert fused[0] is skips[0]
        assert [x.shape for x in fused] == [x.shape for x in skips]
        for target, sources in module.plan.items():
            expected = torch.cat([skips[target - 1], *(x for s in sources for x in direct(s, target))], dim=1)
            torch.testing.assert_close(seen[f"stage{target}"], expected)


def test_v1_gives_the_decoder_and_the_pooling_the_same_map() -> None:
    config = SwinConfig(name="swin_fusion_1_v1", feature_size=12, depths=(1, 1, 1, 1))
    model: Any = build_model(config, in_channels=1, out_channels=2).eval()
    skips: dict[int, Tensor] = {}
    fuse_inputs: dict[int, Tensor] = {}
    decoder_skips: list[Tensor] = []
    for stage, name in enumerate(("encoder1", "encoder2", "encoder3", "encoder4"), start=1):
        block = getattr(model, name)
        block.register_forward_hook(lambda _m, _i, output, stage=stage: skips.update({stage: output}))
    for stage in range(2, 6):
        block = model.fusion.fuse[f"stage{stage}"]
        block.register_forward_pre_hook(lambda _m, args, stage=stage: fuse_inputs.update({stage: args[0]}))
    model.decoder1.register_forward_pre_hook(lambda _m, inputs: decoder_skips.append(inputs[1]))
    with torch.no_grad():
        model(torch.randn(1, 1, 64, 32, 32))
    assert decoder_skips[0] is skips[1]
    for stage, x in fuse_inputs.items():
        num_own = 12 * 2 ** (stage - 2)
        assert stage == 5 or torch.equal(x[:, :num_own], skips[stage])
        assert torch.equal(x[:, num_own:], F.max_pool3d(skips[stage - 1], 2))
