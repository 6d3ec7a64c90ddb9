"""The memory format of a network; guarded convolutions in bfloat16 on a CPU, with the results of float32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_networks import tiny
from torch import Tensor, nn

from fusionseg.config import validate
from fusionseg.models.memory_efficient.convolution_blocks import ResidualBlock
from fusionseg.models.placement import (
    DirectConv3d,
    GuardedConv3d,
    direct_cpu_convolutions_,
    guard_cpu_convolutions_,
    set_memory_format_,
    uses_channels_last,
)
from fusionseg.training.network import build_weightless_network
from fusionseg.training.tasks.choice import build_task


@pytest.mark.parametrize(("kernel", "depth"), [(3, 2), (5, 2), (5, 4), (3, 3), (3, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_gradients_are_those_of_float32(kernel: int, depth: int, layout: torch.memory_format) -> None:
    # Without the guard, (3, 2), (5, 2) and (5, 4) give inf or nan, or abort the process.
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(32, 32, kernel, padding=kernel // 2), nn.Conv3d(32, 32, kernel, padding=kernel // 2)
    )
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    guarded = copy.deepcopy(network)
    guard_cpu_convolutions_(guarded)
    assert list(guarded.state_dict()) == list(network.state_dict())
    x = torch.randn(2, 32, depth, 4, 4).contiguous(memory_format=layout)
    network(x).square().sum().backward()
    for _ in range(3):
        guarded.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = guarded(x)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        for ours, exact in zip(guarded.parameters(), network.parameters(), strict=True):
            assert ours.grad is not None and exact.grad is not None
            assert (ours.grad - exact.grad).norm() < 0.05 * exact.grad.norm()


@pytest.mark.parametrize(("kernel", "shape"), [(2, (4, 6, 2)), (4, (8, 12, 4)), (16, (32, 48, 16)), (4, (16, 16, 16))])
@pytest.mark.parametrize("channels", [1, 16])
def test_patch_embeddings_are_those_of_float32(kernel: int, shape: tuple[int, int, int], channels: int) -> None:
    # Without the guard, on a CPU with amx_bf16, most of these have errors as large as their largest value, or 1e30.
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(channels, 48, kernel, stride=kernel))
    guarded = copy.deepcopy(network)
    guard_cpu_convolutions_(guarded)
    x = torch.randn(1, channels, *shape)
    with torch.autocast("cpu", torch.bfloat16):
        out = guarded(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), network(x), rtol=0.02, atol=0.02)


def test_float32_and_other_kernels_are_unchanged() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.Conv3d(4, 4, 1), nn.ConvTranspose3d(4, 4, 2, stride=2))
    x = torch.randn(1, 4, 2, 4, 4)
    before = network(x)
    guard_cpu_convolutions_(network)
    assert torch.equal(network(x), before)
    assert type(network[1]) is nn.Conv3d and type(network[2]) is nn.ConvTranspose3d


@pytest.mark.parametrize(
    ("name", "settings", "on_gpu"),
    [
        ("unet", {}, False),
        ("unet", {"norm": "batch"}, True),
        ("unet", {"norm": "group", "norm_groups": 4}, False),
        ("monai_unet", {}, False),
        ("swin_fusion_od", {}, True),  # its blocks have instance norms of their own
    ],
)
def test_memory_format_by_device_and_network(name: str, settings: dict[str, object], on_gpu: bool) -> None:
    raw = tiny(name)
    raw["model"].update(settings)
    config = validate(raw)
    network = build_weightless_network(build_task(config), config, 1, 2)
    assert uses_channels_last("auto", network, "cuda") == on_gpu
    assert uses_channels_last("auto", network, "cpu")
    assert uses_channels_last(True, network, "cuda") and not uses_channels_last(False, network, "cpu")


def test_blocks_that_compute_channels_last_always_have_such_weights() -> None:
    def formats() -> list[bool]:
        return [weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in network.parameters()]

    network = nn.Sequential(ResidualBlock(4, 4, 3), nn.Conv3d(4, 4, 3, bias=False))
    assert formats() == [False, False, False]
    assert not set_memory_format_(network, False, "cpu")
    assert formats() == [True, True, False]
    assert set_memory_format_(network, True, "cpu")
    assert formats() == [True, True, True]


@pytest.mark.parametrize(("stride", "groups", "bias"), [(1, 1, True), (2, 1, False), ((1, 2, 1), 2, True)])
def test_direct_convolutions_of_a_prediction_are_those_of_torch(stride: Any, groups: int, bias: bool) -> None:
    torch.manual_seed(0)
    options = {"stride": stride, "padding": 1, "groups": groups, "bias": bias}
    network = nn.Sequential(nn.Conv3d(4, 6, 3, **options), nn.Conv3d(6, 2, 1), nn.Conv3d(2, 2, 3, padding="same"))
    guard_cpu_convolutions_(network)
    window = torch.randn(1, 4, 9, 8, 7)
    with torch.no_grad():
        expected = network(window)
        direct_cpu_convolutions_(network)
        assert [type(layer) for layer in network] == [DirectConv3d, DirectConv3d, GuardedConv3d]
        torch.testing.assert_close(network(window), expected, atol=1e-5, rtol=1e-5)
        traced = torch.jit.trace(network, window)
        assert "mkldnn_convolution" not in str(traced.inlined_graph)  # a program runs on machines without oneDNN too
    torch.testing.assert_close(network(window), expected, atol=1e-5, rtol=1e-5)
    network(window).sum().backward()  # with gradients, as torch computes it
    assert network[0].weight.grad is not None


def test_only_predictions_of_single_windows_are_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Size] = []
    convolve = torch.mkldnn_convolution

    def counted(window: Tensor, *rest: Any) -> Tensor:
        calls.append(window.shape)
        return convolve(window, *rest)

    monkeypatch.setattr(torch, "mkldnn_convolution", counted)
    network = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.Conv3d(3, 2, 1))
    direct_cpu_convolutions_(network)
    window = torch.randn(1, 1, 5, 6, 7)
    network(window)  # with gradients
    with torch.no_grad():
        network(window.expand(2, -1, -1, -1, -1))
        with torch.autocast("cpu", torch.bfloat16):
            network(window)
        unbatched = network(window[0])  # (C, X, Y, Z) with one channel
        assert calls == []
        batched = network(window)
    assert calls == [(1, 1, 5, 6, 7), (1, 3, 5, 6, 7)]
    torch.testing.assert_close(unbatched, batched[0], atol=1e-5, rtol=1e-5)
