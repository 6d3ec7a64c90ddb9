"""Convolutions and residual blocks of the residual-encoder U-Net, with the names of nnU-Net's tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fusionseg.config.section import Triple

_SLOPE = 0.01  # negative slope of the leaky ReLU
_NO_STRIDE: Triple = (1, 1, 1)


class ConvNorm(nn.Module):
    """A convolution without bias, an instance norm with scale and shift, and leaky ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: kernel along each axis, odd.
        stride: stride along each axis.
        activated: end with the activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Triple,
        stride: Triple = _NO_STRIDE,
        *,
        activated: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.norm = nn.InstanceNorm3d(out_channels, affine=True)
        self.activated = activated

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.leaky_relu(x, _SLOPE, inplace=True) if self.activated else x


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut; leaky ReLU follows the sum.

    The shortcut between different sizes is an average pooling, between different numbers of channels a pointwise
    convolution with a norm (ResNet-D: He et al., 2019, section 4, arXiv:1812.01187).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: kernel of both convolutions along each axis.
        stride: stride of the first convolution along each axis.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple, stride: Triple = _NO_STRIDE) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, kernel, stride)
        self.conv2 = ConvNorm(out_channels, out_channels, kernel, activated=False)
        self.skip = nn.Sequential()
        if max(stride) > 1:
            self.skip.append(nn.AvgPool3d(stride, stride))
        if in_channels != out_channels:
            self.skip.append(ConvNorm(in_channels, out_channels, (1, 1, 1), activated=False))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        out += self.skip(x)
        return F.leaky_relu(out, _SLOPE, inplace=True)


class ConvStack(nn.Module):
    """Convolutions one after the other, under the name `convs`."""

    def __init__(self, convs: Sequence[ConvNorm]) -> None:
        super().__init__()
        self.convs = nn.Sequential(*convs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convs(x)
        return out


class Stage(nn.Module):
    """Residual blocks of a level, under the name `blocks`."""

    def __init__(self, blocks: Sequence[ResidualBlock]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)


def initialise_(module: nn.Module) -> None:
    """Initialise a module as nnU-Net does; for `nn.Module.apply`.

    Weights of convolutions are drawn from He's normal distribution, biases are 0. The last norm of a residual block has
    the scale 0, so that the block initially passes its shortcut on.
    """
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResidualBlock):
        nn.init.zeros_(module.conv2.norm.weight)
