"""FusedSkips: fusion sources, channels and resampling for every setting, as in the thesis and docs/models.md."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from fusionseg.models import build_model
from fusionseg.models.fusion.fused_skips import FusedSkips
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.models.swin.fusion_config import FusionConfig

ENCODER = (1, 48, 96, 192, 384, 768)  # feature size 48, one input channel
SKIPS = (48, 48, 96, 192, 384, 768)
HALVINGS = [(2, 2, 2)] * 5
SMALL_ENCODER, SMALL_SKIPS = (1, 2, 3, 4, 5, 6), (2, 2, 3, 4, 5, 6)


def small(*, use_checkpoint: bool = False, **settings: object) -> FusedSkips:
    torch.manual_seed(0)
    config = FusionConfig.model_validate(settings)
    return FusedSkips(config, SMALL_ENCODER, SMALL_SKIPS, HALVINGS, use_checkpoint=use_checkpoint)


def small_maps(channels: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(1, c, 64 >> i, 32 >> i, 32 >> i) for i, c in enumerate(channels)]


def fused_skips(**settings: object) -> FusedSkips:
    with torch.device("meta"):
        return FusedSkips(FusionConfig.model_validate(settings), ENCODER, SKIPS, HALVINGS)


def first_convolutions(blocks: nn.ModuleDict) -> dict[str, tuple[int, int, int]]:
    """Return input channels, output channels and kernel of each block."""
    named: Iterable[tuple[str, Any]] = blocks.items()
    shapes = {stage: block.layer.conv1.conv.weight.shape for stage, block in named}
    return {stage: (shape[1], shape[0], shape[-1]) for stage, shape in shapes.items()}


def test_fusion_sources_of_the_thesis() -> None:
    assert FusionConfig(above=1).fusion_sources == {2: (1,), 3: (2,), 4: (3,), 5: (4,)}
    # Two above: stage 2 has only stage 1 above it.
    assert FusionConfig(above=2).fusion_sources == {2: (1,), 3: (1, 2), 4: (2, 3), 5: (3, 4)}
    everything = {2: (1,), 3: (1, 2), 4: (1, 2, 3), 5: (1, 2, 3, 4), 6: (1, 2, 3, 4, 5)}
    assert FusionConfig(above="all", last_stage=6).fusion_sources == everything


def test_fusion_sources_of_every_combination() -> None:
    amounts: list[Any] = [*range(6), "all"]
    for above, below, last in product(amounts, amounts, (5, 6)):
        up, down = (5 if amount == "all" else amount for amount in (above, below))
        whole = {s: tuple(o for o in range(1, 7) if s - up <= o < s or s < o <= s + down) for s in range(1, last + 1)}
        whole = {stage: sources for stage, sources in whole.items() if sources}
        settings = {"above": above, "below": below, "last_stage": last, "bridge": {}}
        assert FusionConfig.model_validate(settings).fusion_sources == whole
        for stages in ([3], [2, 5], list(whole)) if whole else ():
            chosen = FusionConfig.model_validate({**settings, "stages": stages}).fusion_sources
            assert chosen == {stage: whole[stage] for stage in stages}


def test_v1_pools_the_skips_and_has_no_source_blocks() -> None:
    module = fused_skips(above=1, source="skip")
    assert len(module.sources) == 0
    assert first_convolutions(module.fuse) == {
        "stage2": (48 + 48, 48, 1),
        "stage3": (96 + 48, 96, 1),
        "stage4": (192 + 96, 192, 1),
        "stage5": (384 + 192, 384, 1),
    }


def test_v2_has_a_block_for_each_source() -> None:
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


def test_kernel_and_bottleneck_kernel() -> None:
    kernels = [
        [kernel for _, _, kernel in first_convolutions(fused_skips(last_stage=6, **given).fuse).values()]
        for given in ({}, {"kernel": 3}, {"bottleneck_kernel": 3})
    ]
    assert kernels == [[1, 1, 1, 1, 1], [3, 3, 3, 3, 1], [1, 1, 1, 1, 3]]


def test_overdrive_replaces_the_block_of_the_bottleneck() -> None:
    bottleneck = first_convolutions(fused_skips(last_stage=6).fuse)["stage6"]
    assert bottleneck == (768 + 384 + 192 + 96 + 48 + 1, 768, 1)
    with torch.device("meta"):
        model = build_model(SwinConfig(name="swin_fusion_od"), in_channels=1, out_channels=2)
    assert isinstance(model.encoder10, nn.Identity)


def test_widths_are_the_channels_of_the_sources() -> None:
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


def test_one_width_for_all_sources() -> None:
    module = fused_skips(below="all", widths=64)
    assert first_convolutions(module.sources) == {f"stage{i}": (c, 64, 3) for i, c in enumerate(ENCODER, start=1)}
    assert first_convolutions(module.fuse) == {f"stage{i}": (c + 5 * 64, c, 1) for i, c in enumerate(SKIPS[:5], 1)}


def test_maxavg_does_not_double_maps_from_below() -> None:
    module = fused_skips(above=1, below=1, pooling="maxavg", widths=[1, 2, 3, 4, 5, 6])
    assert first_convolutions(module.fuse) == {
        "stage1": (48 + 2, 48, 1),
        "stage2": (48 + 2 * 1 + 3, 48, 1),
        "stage3": (96 + 2 * 2 + 4, 96, 1),
        "stage4": (192 + 2 * 3 + 5, 192, 1),
        "stage5": (384 + 2 * 4 + 6, 384, 1),
    }


def test_only_used_sources_have_blocks() -> None:
    assert list(fused_skips(above=1, stages=[3, 5]).sources) == ["stage2", "stage4"]
    assert list(fused_skips(above=0, below=2, stages=[4]).sources) == ["stage5", "stage6"]


@pytest.mark.parametrize("source", ["skip", "encoder"])
@pytest.mark.parametrize("pooling", ["max", "avg", "maxavg"])
@pytest.mark.parametrize(("above", "below"), [(1, 0), (2, 0), ("all", 0), (0, 2), (2, 1), ("all", "all")])
def test_fused_skips_equal_the_definition_with_direct_resampling(
    source: str, pooling: str, above: object, below: object
) -> None:
    module = small(source=source, pooling=pooling, above=above, below=below, last_stage=6)
    seen: dict[str, Tensor] = {}
    for stage, block in module.fuse.items():
        hooked: Any = block
        hooked.register_forward_pre_hook(lambda _m, args, stage=stage: seen.update({stage: args[0]}))
    encoder_maps, skips = small_maps(SMALL_ENCODER), small_maps(SMALL_SKIPS)

    def direct(stage: int, target: int) -> list[Tensor]:
        x = skips[stage - 1]
        if source == "encoder":
            x = module.sources[f"stage{stage}"](encoder_maps[stage - 1])
        if stage > target:
            factor = 2 ** (stage - target)
            return [F.interpolate(x, scale_factor=factor, mode="trilinear", align_corners=False)]
        factor = 2 ** (target - stage)
        maximum, mean = F.max_pool3d(x, factor), F.avg_pool3d(x, factor)
        return {"max": [maximum], "avg": [mean], "maxavg": [maximum, mean]}[pooling]

    with torch.no_grad():
        fused = module(encoder_maps, skips)
        assert below or fused[0] is skips[0]
        assert [x.shape for x in fused] == [x.shape for x in skips]
        for target, sources in module.fusion_sources.items():
            expected = torch.cat([skips[target - 1], *(x for s in sources for x in direct(s, target))], dim=1)
            torch.testing.assert_close(seen[f"stage{target}"], expected)
            torch.testing.assert_close(fused[target - 1], module.fuse[f"stage{target}"](expected))


@pytest.mark.parametrize("stages", [[1], [3], [2, 4], [1, 5]])
def test_stages_that_are_not_listed_keep_the_plain_skip(stages: list[int]) -> None:
    module, everything = small(below=1, stages=stages), small(below=1)
    assert everything.load_state_dict(module.state_dict(), strict=False).unexpected_keys == []
    encoder_maps, skips = small_maps(SMALL_ENCODER), small_maps(SMALL_SKIPS)
    with torch.no_grad():
        fused, all_fused = module(encoder_maps, skips), everything(encoder_maps, skips)
    for stage, (x, skip) in enumerate(zip(fused, skips, strict=True), start=1):
        assert (x is skip) == (stage not in stages)
        assert stage not in stages or torch.equal(x, all_fused[stage - 1])


def test_block_of_the_bottleneck_stays_unless_the_bottleneck_is_fused() -> None:
    for fusion, expected in (({"stages": [3]}, False), ({"above": 0, "below": 1}, False), ({"below": 1}, True)):
        config = SwinConfig.model_validate({"name": "swin_fusion_od", "fusion": fusion})
        with torch.device("meta"):
            model = build_model(config, in_channels=1, out_channels=2)
        assert isinstance(model.encoder10, nn.Identity) == expected


@pytest.mark.parametrize("settings", [{"widths": 3}, {"source": "skip", "pooling": "maxavg"}])
def test_full_scale_skips_have_equal_gradients_with_checkpointing(settings: dict[str, Any]) -> None:
    encoder_maps, skips = small_maps(SMALL_ENCODER), small_maps(SMALL_SKIPS)
    gradients = []
    for use_checkpoint in (False, True):
        module = small(below="all", use_checkpoint=use_checkpoint, **settings)
        sum(x.square().mean() for x in module(encoder_maps, skips)).backward()
        gradients.append({name: parameter.grad for name, parameter in module.named_parameters()})
    assert all(gradient is not None and gradient.count_nonzero() for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


def test_full_scale_skips_under_autocast() -> None:
    module = small(below="all", widths=3)
    encoder_maps, skips = small_maps(SMALL_ENCODER), small_maps(SMALL_SKIPS)
    with torch.no_grad():
        expected = module(encoder_maps, skips)
        with torch.autocast("cpu", torch.bfloat16):
            found = module(encoder_maps, skips)
    for x, exact in zip(found[:5], expected[:5], strict=True):
        assert x.dtype == torch.bfloat16
        assert (x.float() - exact).abs().mean() < 0.02 * exact.abs().mean()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"above": 0}, "above: 0 with below: 0"),
        ({"stages": []}, r"stages: .*rising order, got \[\]"),
        ({"stages": [3, 2]}, "stages: .*rising order"),
        ({"stages": [2, 2]}, "stages: .*rising order"),
        ({"stages": [0, 2]}, "stages: .*rising order"),
        ({"stages": [1, 2]}, "stages: 1 .*above: all and below: 0"),
        ({"stages": [6], "above": 0, "below": 1, "last_stage": 6}, "stages: 6 has no fusion source"),
        ({"stages": [2, 6]}, "stages: 6 .*set last_stage: 6"),
        ({"stages": [2, 7], "last_stage": 6}, "stages: 7 .*last_stage: 6; remove it"),
        ({"stages": [2], "above": 0, "bridge": {}}, "stages: 2 has no fusion source"),
        ({"widths": 0}, "widths: expected 4 .*got 0"),
        ({"widths": 64.0}, "expected an integer.*got 64.0"),
        ({"widths": [1, "a", 1, 1]}, "expected an integer"),
        ({"widths": [8] * 4, "below": 1}, "widths: expected 6 .*stages 1 to 6"),
        ({"widths": 64, "source": "skip"}, "widths: only for source: encoder"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FusionConfig.model_validate(settings)


def test_v1_uses_the_same_map_for_the_decoder_and_the_pooling() -> None:
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
