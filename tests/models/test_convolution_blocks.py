"""Convolution blocks against MONAI's in float64, and the memory that they keep."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn
from torch.nn import functional as F

from fusionseg.models.cost import saved_bytes
from fusionseg.models.memory_efficient import autograd_helpers, convolution_blocks, decoder_input
from fusionseg.models.memory_efficient.convolution_blocks import ResidualBlock, UpBlock, pointwise
from fusionseg.models.memory_efficient.instance_norm import norm_statistics


def monai_block(in_channels: int, out_channels: int, kernel_size: int) -> UnetrBasicBlock:
    return UnetrBasicBlock(3, in_channels, out_channels, kernel_size, 1, "instance", res_block=True)


def compare(ours: nn.Module, theirs: nn.Module, *inputs: Tensor) -> None:
    """Compare outputs and all gradients, with the weights of `theirs`."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    results = []
    for block in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = block(*leaves)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
        (out * weight).sum().backward()
        results.append([out, *(x.grad for x in leaves), *(p.grad for p in block.parameters())])
        with torch.no_grad():
            torch.testing.assert_close(block(*inputs), out)
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.fixture(params=["samples", "chunks", "maps"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations on one sample, on a few rows of a sample, or, as on a GPU, on the maps of all samples."""
    if request.param == "chunks":
        monkeypatch.setattr(autograd_helpers, "_CHUNK_ELEMENTS", 64)
    elif request.param == "maps":
        for module in (convolution_blocks, decoder_input):
            monkeypatch.setattr(module, "uses_chunks", lambda _: False)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize(("in_channels", "out_channels"), [(1, 4), (4, 4), (6, 4), (1, 1)])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.usefixtures("chunks")
def test_residual_block_is_that_of_monai(in_channels: int, out_channels: int, kernel_size: int, batch: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, in_channels, 6, 5, 4, dtype=torch.float64)
    compare(
        ResidualBlock(in_channels, out_channels, kernel_size).double(),
        monai_block(in_channels, out_channels, kernel_size).double(),
        x,
    )


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.usefixtures("chunks")
def test_up_block_is_that_of_monai(batch: int) -> None:
    torch.manual_seed(0)
    low = torch.randn(batch, 6, 3, 2, 4, dtype=torch.float64)
    skip = torch.randn(batch, 4, 6, 4, 8, dtype=torch.float64)
    compare(UpBlock(6, 4).double(), UnetrUpBlock(3, 6, 4, 3, 2, "instance", res_block=True).double(), low, skip)


def test_norm_statistics_in_float32() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 64, 64, 64) + 8
    scale, shift = norm_statistics(x.contiguous(memory_format=torch.channels_last_3d))
    mean, deviation = x.double().mean((2, 3, 4)), x.double().var((2, 3, 4), correction=0).add(1e-5).sqrt()
    torch.testing.assert_close(scale, (1 / deviation).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(shift, (-mean / deviation).float(), rtol=1e-6, atol=0)


def test_map_of_one_voxel_is_refused() -> None:
    with pytest.raises(ValueError, match="single voxel"):
        ResidualBlock(2, 2, 3)(torch.randn(1, 2, 1, 1, 1))


@pytest.mark.usefixtures("chunks")
def test_pointwise_is_a_convolution() -> None:
    x = torch.randn(2, 3, 4, 5, 6)
    weight, bias = torch.randn(2, 3, 1, 1, 1), torch.randn(2)
    found = pointwise(x, weight, bias)
    torch.testing.assert_close(found, F.conv3d(x, weight, bias))
    assert found.is_contiguous()


def test_up_block_compiles_as_one_graph() -> None:
    torch.manual_seed(0)
    block = UpBlock(6, 4)
    low, skip = torch.randn(2, 6, 3, 2, 4), torch.randn(2, 4, 6, 4, 8)
    expected = block(low, skip)
    gradients = torch.autograd.grad(expected.square().sum(), list(block.parameters()))
    block.compile(backend="aot_eager", fullgraph=True)
    found = block(low, skip)
    torch.testing.assert_close(found, expected)
    for mine, other in zip(torch.autograd.grad(found.square().sum(), list(block.parameters())), gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(2, 2, 2), (2, 4, 4), (4, 4, 4)])
def test_bfloat16_gradients_of_small_maps(size: tuple[int, int, int]) -> None:
    # torch's own weight gradient is wrong for maps of 2 voxels with a kernel of 3.
    torch.manual_seed(0)
    block, x = ResidualBlock(32, 32, 3), torch.randn(1, 32, *size)
    weight = torch.randn(1, 32, *size)
    exact = torch.autograd.grad((block(x) * weight).sum(), list(block.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = (block(x) * weight).sum()
    for mine, other in zip(torch.autograd.grad(loss, list(block.parameters())), exact, strict=True):
        assert (mine - other).norm() < 0.1 * other.norm()


def test_residual_block_keeps_two_maps() -> None:
    x = torch.randn(1, 8, 16, 16, 16).contiguous(memory_format=torch.channels_last_3d)
    assert saved_bytes(ResidualBlock(8, 8, 3), lambda: ResidualBlock(8, 8, 3)(x)) < 3.1 * x.nbytes + 2**16
