"""Networks of masked pre-training: hidden voxels have no effect; the encoder is that of the segmentation network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.pretraining import PretrainConfig, ReconstructionLossConfig
from fusionseg.losses.reconstruction import ReconstructionLoss
from fusionseg.models import build_model
from fusionseg.models.masked import build_masked
from fusionseg.models.masked.fills import fill_linear, fill_mean
from fusionseg.models.masked.masking import (
    blocks_to_voxels,
    composite,
    hidden_fractions,
    insert_visible,
    join_blocks,
    split_blocks,
    visible_block_indices,
)
from fusionseg.models.masked.swin import BlockAttention, swin_stages
from fusionseg.models.networks.resenc import ResEncConfig
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.models.networks.unet import UNetConfig
from fusionseg.models.networks.unetr import UNETRConfig
from fusionseg.models.placement import guard_cpu_convolutions_
from fusionseg.models.swin.attention import WindowAttention

SWIN = SwinConfig(name="swin_unetr", feature_size=12, depths=(1, 2, 1, 1), window_size=4)
SWIN_V2 = SwinConfig(name="swin_unetr_v2", feature_size=12, depths=(1, 1, 1, 1), window_size=4)
RESENC, RESENC_OD = (
    ResEncConfig.model_validate(
        {"name": name, "channels": [4, 8, 8, 8], "blocks": [1, 2, 1, 1], "strides": [[2, 2, 1], 2, 2]}
    )
    for name in ("resenc_unet", "resenc_fusion_od")
)
VIT = UNETRConfig(name="unetr", feature_size=4, hidden_size=24, mlp_dim=32, num_heads=2)
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Case:
    model: NetworkSection
    method: str
    block: int
    patch: Triple
    ratio: float = 0.5

    @property
    def pretrain(self) -> PretrainConfig:
        small = {} if self.model.pretrains_decoder else {"width": 16, "depth": 1, "heads": 2}
        return PretrainConfig.model_validate(
            {"method": self.method, "block": self.block, "ratio": self.ratio, "decoder": small}
        )

    def build(self, channels: int = 1, *, checkpoint: bool = False) -> nn.Module:
        torch.manual_seed(0)
        return build_masked(
            self.model, self.pretrain, in_channels=channels, patch=self.patch, checkpoint_activations=checkpoint
        )

    def sample(self, batch: int = 2, channels: int = 1) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        grid, count = self.pretrain.grid(self.patch), self.pretrain.num_hidden(self.patch)
        order = torch.rand(batch, prod(grid), generator=generator).argsort(dim=1)
        return torch.randn(batch, channels, *self.patch, generator=generator), (order < count).view(batch, *grid)


CASES = {
    "swin-blackout": Case(SWIN, "blackout", 8, (64, 32, 32)),
    "swin-token": Case(SWIN, "token", 16, (32, 32, 64)),
    "swin-mae": Case(SWIN, "mae", 32, (64, 32, 64), ratio=0.75),
    "vit-blackout": Case(VIT, "blackout", 8, (32, 48, 16)),
    "vit-token": Case(VIT, "token", 16, (32, 48, 16)),
    "vit-mae": Case(VIT, "mae", 16, (32, 48, 16), ratio=0.75),
    "swin-v2-mae": Case(SWIN_V2, "mae", 32, (64, 32, 64)),
    "resenc-blackout": Case(RESENC, "blackout", 8, (16, 16, 8), ratio=0.75),
    "resenc-od-blackout": Case(RESENC_OD, "blackout", 4, (16, 16, 8)),
    "vit-mae-large-blocks": Case(VIT, "mae", 32, (64, 64, 32)),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
MAE = [case for case in CASES.values() if case.method == "mae"]


def encoder_of(model: nn.Module, case: Case) -> nn.Module:
    assert case.model.encoder is not None
    return model.get_submodule(case.model.encoder)


@each_case
def test_shape_of_the_output_and_names_of_the_parts(case: Case) -> None:
    model = case.build(channels=2).eval()
    image, hidden = case.sample(batch=3, channels=2)
    with torch.no_grad():
        assert model(image, hidden).shape == image.shape
    parts = {name.split(".")[0] for name in model.state_dict()}
    more = {"mask_token"} if case.method == "token" else set()
    more |= {"reconstruct", "hidden_token"} if case.model.pretrains_decoder else set()
    more |= {"fusion"} if case.model is RESENC_OD else set()
    assert parts == {case.model.encoder, "decoder"} | more


@each_case
def test_encoder_is_that_of_the_segmentation_network(case: Case) -> None:
    network = build_model(case.model, in_channels=1, out_channels=2, patch=case.patch)
    ours, theirs = encoder_of(case.build(), case), encoder_of(network, case)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)  # checks the shapes too
    constants = {name: x for name, x in theirs.state_dict().items() if name.endswith("index")}
    fresh = encoder_of(build_model(case.model, in_channels=1, out_channels=2, patch=case.patch), case).state_dict()
    assert all(torch.equal(x, fresh[name]) for name, x in constants.items())


@each_case
def test_output_depends_on_visible_voxels_only(case: Case) -> None:
    model = case.build().eval()
    image, hidden = case.sample()
    voxels = blocks_to_voxels(hidden, case.patch)
    with torch.no_grad():
        found = model(image, hidden)
        assert torch.equal(model(torch.where(voxels, torch.nan, image), hidden), found)
        assert not torch.equal(model(torch.where(voxels, image, -image), hidden), found)


@pytest.mark.parametrize("name", ["swin-blackout", "vit-blackout", "resenc-blackout"])
def test_visible_block_of_zeros_differs_from_a_hidden_block(name: str) -> None:
    """For the encoder they are equal (air is 0 in a clipped CT); the decoder has a token at hidden places."""
    case = CASES[name]
    model = case.build().eval()
    image, hidden = case.sample()
    image = image.masked_fill(blocks_to_voxels(hidden, case.patch), 0)
    nothing = torch.zeros_like(hidden)
    with torch.no_grad():
        states, same = model.encode(image, hidden), model.encode(image, nothing)
        assert all(torch.equal(a, b) for a, b in zip(states, same, strict=True))
        assert not torch.equal(model.decode(states, hidden), model.decode(states, nothing))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_first_reconstruction_with_a_prior_is_the_interpolation(case: Case) -> None:
    pretrain = case.pretrain.model_copy(update={"prior": "linear"})
    model = build_masked(case.model, pretrain, in_channels=1, patch=case.patch).eval()
    image, hidden = case.sample()
    voxels = blocks_to_voxels(hidden, case.patch)
    with torch.no_grad():
        first = composite(model(image, hidden), image, voxels)
        torch.testing.assert_close(first, fill_linear(image, voxels))
        assert torch.equal(model(torch.where(voxels, torch.nan, image), hidden), model(image, hidden))


def test_hidden_fractions_of_finer_and_coarser_grids() -> None:
    hidden = torch.tensor([True, False, False, False]).view(1, 2, 2, 1)
    assert hidden_fractions(hidden, (4, 2, 1))[0, 0, :, :, 0].tolist() == [[1, 0], [1, 0], [0, 0], [0, 0]]
    assert hidden_fractions(hidden, (1, 2, 3))[0, 0, 0].tolist() == [[0.5] * 3, [0] * 3]


@each_case
def test_samples_of_a_batch_are_independent(case: Case) -> None:
    model = case.build().eval()
    image, hidden = case.sample()
    assert not torch.equal(hidden[0], hidden[1])
    with torch.no_grad():
        both = model(image, hidden)
        for sample in range(2):
            one = slice(sample, sample + 1)
            torch.testing.assert_close(model(image[one], hidden[one]), both[one], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", MAE, ids=lambda case: f"{case.model.name}-{case.block}")
def test_mae_encodes_visible_blocks_only(case: Case) -> None:
    model = case.build().eval()
    seen: list[torch.Size] = []
    encoder = encoder_of(model, case)
    first = encoder.get_submodule("patch_embed" if case.model.encoder == "swinViT" else "blocks.0")
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    image, hidden = case.sample()
    with torch.no_grad():
        model(image, hidden)
    visible = int((~hidden).sum())
    if case.model.encoder == "swinViT":
        assert seen == [(visible, 1, case.block, case.block, case.block)]
    else:
        assert seen == [(2, visible // 2 * (case.block // 16) ** 3, 24)]


@each_case
def test_every_parameter_gets_a_gradient(case: Case) -> None:
    # DDP needs this without find_unused_parameters.
    model = case.build().train()
    image, hidden = case.sample()
    ReconstructionLoss(ReconstructionLossConfig(), 6.0)(model(image, hidden), (image, hidden)).backward()
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None] == []
    assert all(gradient is not None and gradient.isfinite().all() for gradient in trained.values())
    assert {"decoder", case.model.encoder} <= {name.split(".")[0] for name in trained}


@pytest.mark.parametrize("name", ["swin-blackout", "swin-mae", "resenc-od-blackout"])
def test_checkpointing_has_equal_gradients(name: str) -> None:
    case = CASES[name]
    image, hidden = case.sample(batch=1)
    gradients = []
    for checkpoint in (False, True):
        model = case.build(checkpoint=checkpoint).train()
        model(image, hidden).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


@each_case
def test_meta_device_and_bfloat16(case: Case) -> None:
    with torch.device("meta"):
        model = case.build()
        image, hidden = (
            torch.empty(1, 1, *case.patch),
            torch.empty(1, *case.pretrain.grid(case.patch), dtype=torch.bool),
        )
        assert model(image, hidden).shape == image.shape
    model = case.build()
    guard_cpu_convolutions_(model)  # as in training on a CPU
    image, hidden = case.sample(batch=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(image, hidden)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), model(image, hidden), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    "case",
    [CASES["swin-token"], CASES["swin-mae"], CASES["vit-mae"]],
    ids=lambda case: f"{case.model.name}-{case.method}",
)
def test_compiles_as_one_graph(case: Case) -> None:
    model = case.build().eval()
    image, hidden = case.sample()
    torch.compiler.reset()  # otherwise the shapes of the previous case would make these dynamic
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image, hidden), model(image, hidden), rtol=1e-4, atol=1e-5)


def test_blocks_are_independent_in_the_encoder() -> None:
    case = CASES["swin-mae"]
    model = case.build().eval()
    image, _ = case.sample(batch=1)
    hidden = torch.ones(1, 2, 1, 2, dtype=torch.bool)
    hidden[0, 1, 0, 0] = False
    with torch.no_grad():
        states = model.encode(image, hidden)
        image[..., :32, :, :] = image[..., 32:] = 0  # all other blocks
        again = model.encode(image, hidden)
    assert [tuple(state.shape[2:]) for state in states] == [(16,) * 3, (8,) * 3, (4,) * 3, (2,) * 3, (1,) * 3]
    assert all(torch.equal(one, other) for one, other in zip(states, again, strict=True))


def test_windows_tile_a_block() -> None:
    wide = SWIN.model_copy(update={"window_size": 7})
    model = build_masked(wide, CASES["swin-mae"].pretrain, in_channels=1, patch=(64, 32, 64))
    assert [stage.window_size for stage in swin_stages(model.swinViT)] == [4, 4, 4, 2]
    whole = build_masked(wide, CASES["swin-blackout"].pretrain, in_channels=1, patch=(64, 32, 64))
    assert [stage.window_size for stage in swin_stages(whole.swinViT)] == [7, 7, 7, 7]


def test_smaller_window_has_the_biases_of_the_same_offsets() -> None:
    attention = BlockAttention(12, 3, 5)
    whole = attention.position_bias(5**3).view(3, *[5] * 6)
    assert torch.equal(whole.flatten(1), WindowAttention.position_bias(attention, 5**3).flatten(1))
    smaller = attention.position_bias(2**3).view(3, *[2] * 6)
    assert torch.equal(smaller, whole[:, :2, :2, :2, :2, :2, :2])
    assert torch.equal(smaller, whole[:, 3:, 3:, 3:, 3:, 3:, 3:])  # only the offset counts


def test_split_and_join_blocks() -> None:
    x = torch.randn(2, 3, 8, 6, 4)
    grid = (4, 3, 1)
    blocks = split_blocks(x, grid)
    assert torch.equal(blocks[12 + 3 * 1 + 2, :, :, :, :], x[1, :, 2:4, 4:6, :])
    assert torch.equal(join_blocks(blocks, grid), x)
    hidden = torch.tensor([[True, False, True], [False, True, True]]).view(2, 1, 3, 1)
    indices = visible_block_indices(hidden, 1)
    assert indices.tolist() == [1, 3]
    filled = insert_visible(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), indices, 6, torch.tensor([8.0, 9.0]))
    assert filled.tolist() == [[8, 9], [1, 2], [8, 9], [3, 4], [8, 9], [8, 9]]


@pytest.mark.parametrize(
    "case",
    [Case(SWIN, "token", 16, (32, 32, 32)), CASES["vit-mae"], Case(RESENC, "blackout", 4, (16, 16, 8))],
    ids=["swin", "vit", "resenc"],
)
def test_tiny_network_overfits_one_patch(case: Case) -> None:
    axes = torch.meshgrid(*(torch.linspace(0, 6, size) for size in case.patch), indexing="ij")
    image = (axes[0].sin() + axes[1].cos() * axes[2].sin())[None, None]
    _, hidden = case.sample(batch=1)
    loss = ReconstructionLoss(ReconstructionLossConfig(ssim=0.0, l2=1.0, over="masked"), 6.0)
    trivial = float(loss(fill_mean(image, blocks_to_voxels(hidden, case.patch)), (image, hidden)))
    model = case.build()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(model(image, hidden), (image, hidden))
        value.backward()
        optimizer.step()
    assert value.item() < 0.25 * trivial


def test_a_network_without_an_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="unet has no encoder that can be pre-trained"):
        build_masked(UNetConfig(name="unet"), PretrainConfig(), in_channels=1, patch=(64, 64, 64))


def test_the_section_of_a_network_builds_its_pretraining() -> None:
    class OwnConfig(UNetConfig):
        pretrain_methods: ClassVar[Mapping[str, int]] = {"blackout": 4}

        def build_masked(self, pretrain: PretrainConfig, *, in_channels: int, **more: Any) -> nn.Module:
            return nn.Conv3d(in_channels, in_channels, pretrain.block)

    built = build_masked(OwnConfig(name="unet"), PretrainConfig(block=8), in_channels=2, patch=(16, 16, 16))
    assert isinstance(built, nn.Conv3d) and (built.in_channels, built.kernel_size) == (2, (8, 8, 8))
