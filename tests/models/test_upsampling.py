"""upsample equals torch's trilinear interpolation, and so does its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fusionseg.models.fusion.upsampling import upsample


@pytest.mark.parametrize("factor", [2, 4, 32])
@pytest.mark.parametrize("size", [(1, 1, 2), (3, 2, 1)])
def test_equals_trilinear_interpolation_and_its_gradient(size: tuple[int, int, int], factor: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    ours, torchs = (
        upsample(x, (factor,) * 3),
        F.interpolate(x, scale_factor=factor, mode="trilinear", align_corners=False),
    )
    torch.testing.assert_close(ours, torchs)
    weights = torch.randn_like(torchs)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, weights)[0] for y in (ours, torchs)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_exact_in_16_bits(dtype: torch.dtype) -> None:
    x = torch.zeros(1, 1, 1, 1, 2)
    x[..., 1] = 1  # the result is then the weight of the second voxel
    torch.testing.assert_close(upsample(x.to(dtype), (32,) * 3).float(), upsample(x, (32,) * 3), rtol=0, atol=0)


def test_factor_one_returns_the_map() -> None:
    x = torch.randn(1, 1, 2, 2, 2)
    assert upsample(x, (1, 1, 1)) is x
