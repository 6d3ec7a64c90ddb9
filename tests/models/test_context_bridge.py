"""ContextBridge: identity at the start, then every bridged stage depends on all others, for patches of any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fusionseg.models import build_model
from fusionseg.models.fusion.context_bridge import ContextBridge
from fusionseg.models.fusion.fused_skips import FusedSkips
from fusionseg.models.fusion.settings import BridgeConfig
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.models.swin.fusion_config import FusionConfig

HALVINGS = [(2, 2, 2)] * 5
CHANNELS = (4, 4, 6, 8, 10, 12)
SMALL: dict[str, Any] = {"width": 12, "heads": 2, "depth": 2, "mlp_ratio": 2}


def bridge(**settings: Any) -> ContextBridge:
    torch.manual_seed(0)
    return ContextBridge(BridgeConfig.model_validate({**SMALL, **settings}), CHANNELS, HALVINGS)


def activated(module: ContextBridge) -> ContextBridge:
    """Give the last projections random weights, as after some training; they are initialised with 0."""
    layers: Any = module.expand.values()
    for layer in layers:
        nn.init.normal_(layer.weight)
    return module


def skips(size: tuple[int, int, int] = (64, 32, 32)) -> list[Tensor]:
    return [torch.randn(1, c, *(n >> i for n in size)) for i, c in enumerate(CHANNELS)]


def changed(before: list[Tensor], after: list[Tensor]) -> list[int]:
    return [i for i, (x, y) in enumerate(zip(before, after, strict=True), start=1) if not torch.equal(x, y)]


@pytest.mark.parametrize("stages", [[2, 3, 4, 5, 6], [3, 4, 5, 6], [4, 6]])
def test_bridge_is_the_identity_until_it_is_trained(stages: list[int]) -> None:
    module, maps = bridge(stages=stages), skips()
    out = module(maps)
    assert changed(maps, out) == []
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for step in range(2):
        optimizer.zero_grad()
        sum((x - 1).square().mean() for x in module(maps)).backward()
        gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
        assert all(gradient is not None for gradient in gradients.values())  # DDP needs this
        flowing = {name.split(".")[0] for name, gradient in gradients.items() if gradient.count_nonzero()}
        assert step == 0 or flowing == {"reduce", "expand", "norm_in", "blocks", "norm_out"}
        optimizer.step()
        out = module(maps)
        assert changed(maps, out) == stages
        assert all(out[i - 1] is maps[i - 1] for i in range(1, 7) if i not in stages)


def test_every_bridged_stage_depends_on_every_voxel_of_the_others() -> None:
    module, maps = activated(bridge()).eval(), skips()
    with torch.no_grad():
        before = module(maps)
        maps[2][0, 0, 0, 0, 0] += 10  # one corner of stage 3
        after = module(maps)
    assert changed(before, after) == [3, 4, 5, 6]
    for x, y in zip(before[2:], after[2:], strict=True):
        assert not torch.equal(x[..., -1, -1, -1], y[..., -1, -1, -1])  # the opposite corner


@pytest.mark.parametrize(("grid", "tokens"), [(4, 3 * 128 + 16 + 2), (5, 4 * 16 + 2), (6, 5 * 2)])
def test_number_of_tokens(grid: int, tokens: int) -> None:
    module = bridge(stages=[2, 3, 4, 5, 6], grid=grid)
    seen: list[tuple[int, ...]] = []
    module.norm_in.register_forward_hook(lambda _m, _args, out: seen.append(tuple(out.shape)))
    maps = skips()
    assert [x.shape for x in module(maps)] == [x.shape for x in maps]
    assert seen == [(1, tokens, SMALL["width"])]


def test_ffn_mixes_neighbours_of_the_same_map() -> None:
    block: Any = bridge(stages=[3, 5, 6]).blocks[0]
    for parameter in block.attention.out_proj.parameters():
        nn.init.zeros_(parameter)
    grids = [(4, 3, 2), (4, 3, 2), (2, 1, 1)]
    tokens = torch.randn(1, 50, SMALL["width"])
    other = tokens.clone()
    other[0, 24, 0] += 1  # the first voxel of the second map
    with torch.no_grad():
        differs = (block(other, grids) != block(tokens, grids)).any(-1)[0]
    expected = torch.zeros(50, dtype=torch.bool)
    expected[24:48].view(4, 3, 2)[:2, :2, :2] = True
    assert torch.equal(differs, expected)


def test_one_state_dict_for_patches_of_two_sizes() -> None:
    small, large = activated(bridge()), bridge()
    large.load_state_dict(small.state_dict(), strict=True)
    for size in ((64, 32, 32), (96, 64, 32)):
        maps = skips(size)
        with torch.no_grad():
            ours, theirs = small(maps), large(maps)
        assert changed(maps, ours) == [3, 4, 5, 6]
        torch.testing.assert_close(ours, theirs)


def test_new_network_with_a_bridge_has_the_output_of_the_one_without() -> None:
    settings: dict[str, Any] = {"feature_size": 12, "depths": (1, 1, 1, 1)}
    plain = build_model(SwinConfig(name="swin_unetr", **settings), in_channels=2, out_channels=2).eval()
    config = SwinConfig.model_validate({"name": "swin_fusion_bridge", "fusion": {"bridge": SMALL}, **settings})
    bridged = build_model(config, in_channels=2, out_channels=2).eval()
    keys = bridged.load_state_dict(plain.state_dict(), strict=False)
    assert keys.unexpected_keys == [] and {key.split(".bridge.")[0] for key in keys.missing_keys} == {"fusion"}
    x = torch.randn(1, 2, 64, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(bridged(x), plain(x), rtol=0, atol=0)


def test_autocast_and_compilation_together_with_fused_stages() -> None:
    # With fused stages and recomputed activations: the most complex graph for torch.compile.
    settings = {"above": 1, "below": 1, "stages": [4], "bridge": {**SMALL, "stages": [4, 6]}}
    module = FusedSkips(FusionConfig.model_validate(settings), CHANNELS, CHANNELS, HALVINGS, use_checkpoint=True)
    assert isinstance(module.bridge, ContextBridge)
    activated(module.bridge)
    maps = skips()
    expected = module(maps, maps)
    with torch.autocast("cpu", torch.bfloat16):
        for x, exact in zip(module(maps, maps), expected, strict=True):
            assert (x.float() - exact).abs().mean() < 0.02 * exact.abs().mean()
    compiled: Any = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(maps, maps), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": []}, r"stages: expected some of the stages 2 to 6.*got \[\]"),
        ({"stages": [1, 2]}, "stages: expected some of the stages 2 to 6"),
        ({"stages": [4, 3]}, "stages: expected some of the stages 2 to 6"),
        ({"stages": [6, 7]}, "stages: expected some of the stages 2 to 6"),
        ({"heads": 5}, "heads: 5 does not divide width: 192; choose a divisor"),
    ],
)
def test_impossible_settings_are_refused_with_the_fix(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FusionConfig.model_validate({"bridge": settings})
