"""U-Net family: every name and option, in 3D and over 2D slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from fusionseg.config import ValidateConfig
from fusionseg.models.networks.unet import UNetConfig
from fusionseg.models.placement import channels_last_
from fusionseg.models.unet.network import UNet
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.sliding_window import predict_logits

CONFIG: TypeAdapter[UNetConfig] = TypeAdapter(UNetConfig)
NAMES = ["unet", "resunet", "attention_unet", "attention_resunet"]
VIEWS = [("sagittal", 0), ("coronal", 1), ("axial", 2)]
SLICES = {"dims": 2, "view": "axial"}


def make(name: str = "unet", seed: int = 0, **settings: Any) -> UNet:
    """Build a small network for two channels and three classes."""
    torch.manual_seed(seed)
    config = CONFIG.validate_python({"name": name, "channels": [4, 8, 16, 16], **settings})
    return config.build(in_channels=2, out_channels=3, patch=None, checkpoint_activations=False)


def noise(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


def layers(network: nn.Module, *kinds: type[nn.Module]) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, kinds)]


# -- every member of the family ------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [{}, SLICES], ids=["3D", "2D"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_gradients_and_state_dict(name: str, dims: dict[str, Any]) -> None:
    network, x = make(name, **dims).train(), noise(2, 2, 16, 16, 8)
    logits = network(x)
    assert logits.shape == (2, 3, 16, 16, 8)
    (logits * noise(*logits.shape)).sum().backward()
    dead = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert dead == []
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    other = make(name, seed=1, **dims).eval()
    assert not torch.equal(other(x), network.eval()(x))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x), network(x))


@pytest.mark.parametrize("dims", [{}, SLICES], ids=["3D", "2D"])
@pytest.mark.parametrize("name", ["unet", "attention_resunet"])
def test_trains_in_bfloat16(name: str, dims: dict[str, Any]) -> None:
    network = make(name, deep_supervision=True, **dims).train()
    x = noise(1, 2, 32, 16, 16)  # torch 2.13 on a CPU: wrong weight gradients in bfloat16 of maps 2 voxels deep
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
    assert {part.dtype for part in logits} == {torch.bfloat16}
    torch.testing.assert_close(logits[0].float(), network(x)[0], atol=0.1, rtol=0.1)
    sum(part.float().square().mean() for part in logits).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_compiles_as_one_graph() -> None:
    network = make("attention_resunet", deep_supervision=True, convs_per_level=1, **SLICES).train()
    x = noise(1, 2, 16, 16, 2)
    compiled = torch.compile(network, backend="eager", fullgraph=True)  # raises an exception at a graph break
    for ours, plain in zip(compiled(x), network(x), strict=True):
        torch.testing.assert_close(ours, plain)


# -- options -------------------------------------------------------------------------------------------------


def test_residual_blocks_add_their_input_before_the_last_activation() -> None:
    x = noise(1, 4, 6, 6, 6)
    plain, residual = (make(name, channels=[4, 4], strides=[1], activation="relu").encoder[1] for name in NAMES[:2])
    for block, expected in ((plain, torch.zeros_like(x)), (residual, x.relu())):
        nn.init.zeros_(layers(block, nn.InstanceNorm3d)[-1].weight)  # the output of the last convolution is then 0
        torch.testing.assert_close(block(x), expected)


def test_residual_connection_between_different_sizes() -> None:
    """It is the mean over the stride, followed by a pointwise convolution and its norm."""
    x = noise(1, 4, 6, 6, 5)
    block = make("resunet", channels=[4, 8], strides=[[2, 2, 1]], activation="relu").encoder[1]
    nn.init.zeros_(layers(block.convs, nn.InstanceNorm3d)[-1].weight)
    (pointwise,) = layers(block.shortcut, nn.Conv3d)
    assert pointwise.weight.shape == (8, 4, 1, 1, 1)
    expected = pointwise(nn.functional.avg_pool3d(x, (2, 2, 1)))
    torch.testing.assert_close(block(x), nn.functional.instance_norm(expected).relu())


@pytest.mark.parametrize("dims", [{}, SLICES], ids=["3D", "2D"])
def test_gates_are_on_all_skips_but_the_first_and_initially_open(dims: dict[str, Any]) -> None:
    network = make("attention_unet", **dims).eval()
    assert set(network.gates) == {"1", "2"} and set(make("unet").gates) == set()
    axes = (16, 8, 8)[: 2 if dims else 3]
    skip, gating = noise(2, 8, *axes), noise(2, 16, *(n // 2 for n in axes))
    gate: Any = network.gates["1"]
    weights = gate.weights(skip, gating)
    assert weights.shape == (2, 1, *axes)
    assert 0 <= weights.min() < weights.max() <= 1 and weights.mean() > 0.9
    torch.testing.assert_close(gate(skip, gating), skip * weights)
    nn.init.constant_(gate.score.conv.bias, -100.0)
    assert not gate(skip, gating).any()


@pytest.mark.parametrize(
    ("settings", "kind", "check"),
    [
        ({"norm": "instance"}, nn.InstanceNorm3d, lambda norm: norm.affine),
        ({"norm": "group", "norm_groups": 2}, nn.GroupNorm, lambda norm: norm.num_groups == 2),
        ({"norm": "group", "channels": [8, 16, 24, 24]}, nn.GroupNorm, lambda norm: norm.num_groups == 8),
        ({"norm": "batch"}, nn.BatchNorm3d, lambda norm: norm.affine),
        ({"norm": "batch", **SLICES}, nn.BatchNorm2d, lambda norm: norm.affine),
    ],
)
def test_all_norms_are_of_the_configured_kind(settings: dict[str, Any], kind: type[nn.Module], check: Any) -> None:
    network = make("attention_resunet", **settings)
    found = layers(
        network, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.LayerNorm
    )
    shortcuts = 3 + 3  # the width changes in all blocks but the last of the encoder
    assert len(found) == 2 * 7 + 2 + shortcuts  # convolutions, gates
    assert all(type(norm) is kind and check(norm) for norm in found)


def test_separable_convolutions_are_a_depthwise_and_a_pointwise_one() -> None:
    network = make(separable=True)
    found = layers(network.encoder, nn.Conv3d) + layers(network.decoder, nn.Conv3d)
    first, *others = [c for c in found if c.kernel_size == (3, 3, 3)]
    assert (first.in_channels, first.out_channels, first.groups) == (2, 4, 1)
    assert all(c.groups == c.in_channels == c.out_channels for c in others)
    pointwise = [c for c in found if c.kernel_size == (1, 1, 1)]
    assert [(c.in_channels, c.groups) for c in pointwise] == [(c.in_channels, 1) for c in others]
    assert [c.stride for c in others if max(c.stride) > 1] == [(2, 2, 2)] * 3
    # The two convolutions of a level from 8 to 16 channels: 27 weights for each channel, and one for each pair.
    weights = sum(c.weight.numel() for c in layers(network.encoder[2], nn.Conv3d))
    assert weights == (27 * 8 + 8 * 16) + (27 * 16 + 16 * 16)
    assert sum(c.weight.numel() for c in layers(make().encoder[2], nn.Conv3d)) == 27 * (8 * 16 + 16 * 16)


@pytest.mark.parametrize("count", [1, 3])
def test_convolutions_per_level(count: int) -> None:
    network = make(convs_per_level=count)
    assert [len(layers(block, nn.Conv3d)) for block in (*network.encoder, *network.decoder)] == [count] * 7


@pytest.mark.parametrize(
    ("strides", "sizes"),
    [
        (None, [(16, 16, 8), (8, 8, 4), (4, 4, 2), (2, 2, 1)]),
        ([[2, 2, 1], 2, [1, 2, 2]], [(16, 16, 8), (8, 8, 8), (4, 4, 4), (4, 2, 2)]),
        ([1, 4, 2], [(16, 16, 8), (16, 16, 8), (4, 4, 2), (2, 2, 1)]),
    ],
)
def test_strides_per_level_and_axis(strides: Any, sizes: list[tuple[int, ...]]) -> None:
    network, x, found = make("attention_resunet", strides=strides), noise(1, 2, 16, 16, 8), []
    logits = network(x)
    for block in network.encoder:
        x = block(x)
        found.append(tuple(x.shape[2:]))
    assert found == sizes
    assert logits.shape == (1, 3, 16, 16, 8)


@pytest.mark.parametrize(("activation", "kind"), [("relu", nn.ReLU), ("leakyrelu", nn.LeakyReLU)])
@pytest.mark.parametrize("name", ["unet", "resunet"])
def test_all_activations_are_of_the_configured_kind(name: str, activation: str, kind: type[nn.Module]) -> None:
    found = layers(make(name, activation=activation), nn.ReLU, nn.LeakyReLU, nn.PReLU)
    assert len(found) == 2 * 7 and {type(layer) for layer in found} == {kind}


@pytest.mark.parametrize(("dims", "kind"), [({}, nn.Dropout3d), (SLICES, nn.Dropout2d)])
def test_dropout_drops_whole_channels(dims: dict[str, Any], kind: type[nn.Module]) -> None:
    found = layers(make("resunet", dropout=0.25, **dims), nn.Dropout, nn.Dropout2d, nn.Dropout3d)
    assert [type(layer) for layer in found] == [kind] * (2 * 7) and {layer.p for layer in found} == {0.25}
    assert layers(make("resunet", **dims), nn.Dropout, nn.Dropout2d, nn.Dropout3d) == []


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, [(32, 32, 16), (16, 16, 8), (8, 8, 4)]),
        ({"view": "axial", "dims": 2}, [(32, 32, 16), (16, 16, 16), (8, 8, 16)]),
        ({"view": "sagittal", "dims": 2}, [(32, 32, 16), (32, 16, 8), (32, 8, 4)]),
    ],
)
def test_deep_supervision_heads(settings: dict[str, Any], sizes: list[tuple[int, ...]]) -> None:
    network = make(channels=[4, 4, 4, 4, 4], deep_supervision=True, **settings).train()
    x = noise(1, 2, 32, 32, 16)
    logits = network(x)
    assert len(network.heads) == 3 and [tuple(part.shape) for part in logits] == [(1, 3, *size) for size in sizes]
    sum(part.square().sum() for part in logits).backward()
    assert all(p.grad is not None for p in network.parameters())
    torch.testing.assert_close(network.eval()(x), logits[0])
    assert len(make(channels=[4, 4, 4, 4, 4]).heads) == 1


# -- slices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("view", "axis"), VIEWS)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_slices_are_independent(view: str, axis: int, norm: str) -> None:
    network = make("attention_resunet", dims=2, view=view, norm=norm).eval()
    shape = [16, 16, 16]
    shape[axis] = 5
    x = noise(2, 2, *shape)
    logits = network(x)
    assert logits.shape == (2, 3, *shape)
    one_by_one = [network(x.narrow(2 + axis, number, 1)) for number in range(5)]
    torch.testing.assert_close(logits, torch.cat(one_by_one, dim=2 + axis))
    # A change in one slice changes that whole slice, and no other.
    changed = x.clone()
    changed.select(2 + axis, 3).select(2, 4)[:] += 5
    moved = (network(changed) - logits).abs().amax(dim=[0, 1, *(2 + other for other in range(3) if other != axis)])
    assert (moved > 1e-4).tolist() == [False, False, False, True, False]


def test_volume_is_predicted_slice_by_slice() -> None:
    network, x = make(**SLICES).eval(), noise(2, 16, 24, 5)
    precision = Precision("fp32", "", "cpu")
    settings = ValidateConfig.model_validate({"window_batch": 3})
    logits = predict_logits(network, x, (0, 0), (16, 24, 1), settings, precision, device=torch.device("cpu"))
    torch.testing.assert_close(logits, network(x[None])[0])


# -- configurations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "patch", "multiples", "suggestion"),
    [
        ({}, (16, 16, 20), "multiples of 8, ", "[16, 16, 16]"),
        ({}, (8, 8, 8), "multiples of 8, ", "[16, 8, 8]"),
        ({"strides": [[2, 2, 1], 2, 2]}, (16, 16, 6), "multiples of [8, 8, 4], ", "[16, 16, 8]"),
        ({"dims": 2, "view": "axial"}, (16, 15, 7), "in the plane of axial slices (axes 0 and 1)", "[16, 16, 7]"),
        ({"dims": 2, "view": "coronal"}, (16, 1, 9), "in the plane of coronal slices (axes 0 and 2)", "[16, 1, 8]"),
        ({"dims": 2, "view": "sagittal"}, (64, 8, 8), "(axes 1 and 2), and more than one voxel", "[64, 16, 8]"),
        ({"dims": 2, "view": "axial", "strides": [[2, 1], 2, 2]}, (9, 8, 1), "multiples of [8, 4] in", "[8, 8, 1]"),
    ],
)
def test_unsuitable_patch_is_refused_with_a_suggestion(
    settings: dict[str, Any], patch: tuple[int, int, int], multiples: str, suggestion: str
) -> None:
    config = CONFIG.validate_python({"name": "unet", **settings})
    problem = config.patch_problem(patch)
    assert problem is not None and multiples in problem and problem.endswith(f"not {list(patch)}: try {suggestion}")


@pytest.mark.parametrize(("view", "axis"), VIEWS)
@pytest.mark.parametrize("thickness", [1, 3, 8])
def test_patch_may_have_any_number_of_slices(view: str, axis: int, thickness: int) -> None:
    patch = [16, 16, 16]
    patch[axis] = thickness
    config = CONFIG.validate_python({"name": "unet", "dims": 2, "view": view})
    assert config.patch_problem((patch[0], patch[1], patch[2])) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": [8]}, "at least two levels"),
        ({"channels": [8, 0]}, "[8, 0]"),
        (
            {"strides": [2, 2]},
            "strides: expected 3 entries, one fewer than channels, each an integer from 1 or a list of 3",
        ),
        ({"strides": [2, 2, [2, 2]]}, "a list of 3 of them, got [2, 2, [2, 2]]"),
        ({"strides": [2, 2, [2, 0, 2]]}, "a list of 3 of them, got [2, 2, [2, 0, 2]]"),
        ({**SLICES, "strides": [2, 2, [2, 2, 2]]}, "a list of 2 of them, got [2, 2, [2, 2, 2]]"),
        ({"strides": [2, 2, 0]}, "expected a list, each entry an integer from 1 or a list with one for each axis"),
        ({"strides": ["two", 2, 2]}, "got ['two', 2, 2]"),
        ({"norm": "group", "channels": [8, 12, 20]}, "norm_groups: 8 does not divide [12, 20] of channels; choose a"),
        ({"norm": "group", "norm_groups": 3}, "norm_groups: 3 does not divide [32, 64, 128, 256] of channels"),
        ({"norm_groups": 4}, "norm_groups: only for norm: group, got norm: instance"),
        ({"dims": 2}, "view: missing for dims: 2; set it to axial, coronal, sagittal"),
        ({"view": "axial"}, "view: axial needs dims: 2"),
        ({"name": "attention_unet", "channels": [8, 16]}, "channels: attention_unet needs three levels"),
        ({"deep_supervision": True, "channels": [8, 16, 32]}, "deep_supervision: needs at least 4 levels"),
    ],
)
def test_wrong_configuration_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CONFIG.validate_python({"name": "unet", **settings})
    (error,) = caught.value.errors()
    assert message in error["msg"]


# -- layout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [{}, SLICES], ids=["3D", "2D"])
def test_channels_last_does_not_change_the_logits(dims: dict[str, Any]) -> None:
    network, x = make("attention_resunet", **dims).eval(), noise(1, 2, 16, 16, 8)
    logits = network(x)
    channels_last_(network)
    layout = torch.channels_last if dims else torch.channels_last_3d
    convolutions = layers(network, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    assert all(layer.weight.is_contiguous(memory_format=layout) for layer in convolutions)
    torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last_3d)), logits)
