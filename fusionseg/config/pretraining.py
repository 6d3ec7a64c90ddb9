"""The `pretrain` section: an encoder learns to reconstruct hidden parts of unlabelled volumes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fusionseg.config.section import Positive, Section, Triple


class ReconstructionLossConfig(Section):
    """A weighted sum of 1 - SSIM, the mean absolute and the mean squared difference."""

    ssim: Annotated[float, Field(ge=0)] = 1.0
    """Weight of 1 - SSIM (Wang et al., 2004), the thesis's loss."""
    l1: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean absolute difference."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean squared difference."""
    over: Literal["all", "masked"] = "all"
    """Mean over all voxels, or over the hidden ones only (He et al., 2022)."""

    @model_validator(mode="after")
    def _something(self) -> ReconstructionLossConfig:
        if self.ssim + self.l1 + self.l2 == 0:
            raise ValueError("ssim: all weights are 0; set at least one of ssim, l1, l2 above 0")
        return self


class DecoderConfig(Section):
    """The decoder, which is not used after the pre-training. The residual-encoder U-Net reconstructs with its own
    decoder instead, and then these keys have to be left out."""

    width: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """Channels; a multiple of 8. With a Swin encoder, the decoder has half of them at 1/4 of the resolution and a
    quarter at 1/2. With a ViT, a linear layer maps them to the 16^3 voxels of a token, which needs more channels (He
    et al. use 512)."""
    depth: Positive = 2
    """Number of blocks. With a Swin encoder: residual blocks at each scale (always one at 1/2 of the resolution). With
    a ViT: transformer blocks."""
    heads: Positive = 4
    """Attention heads of the decoder of a ViT; a divisor of the width."""

    @model_validator(mode="after")
    def _heads_divide(self) -> DecoderConfig:
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of the width {self.width}, got {self.heads}")
        return self


class PretrainConfig(Section):
    """Masked reconstruction of unlabelled volumes, with the encoder of the network under `model`."""

    method: Literal["blackout", "token", "mae"] = "blackout"
    """`blackout`: hidden blocks are set to 0 and everything is encoded (the thesis); `token`: the same with a learned
    token (SimMIM: Xie et al., 2022); `mae`: only the visible blocks are encoded (He et al., 2022). The
    residual-encoder U-Net has no tokens: it takes `blackout`."""
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the blocks that are hidden."""
    block: Positive = 16
    """Edge of a hidden block in voxels; it divides the patch. `mae` needs a multiple of 32 with a Swin encoder, and of
    16 with a ViT."""
    prior: Literal["none", "linear"] = "none"
    """`linear`: the decoder's output is added to the linear interpolation between the visible voxels, so that the
    network learns only the difference; `none`: the decoder's output is the reconstruction, as in the thesis."""
    decoder: DecoderConfig = DecoderConfig()
    loss: ReconstructionLossConfig = ReconstructionLossConfig()
    data_range: Annotated[float, Field(gt=0)] | None = None
    """Range of the intensities, for SSIM and PSNR; null is 1 for `data.intensity.mode: window` and 6 for `zscore`
    (three deviations on either side of the mean)."""

    def grid(self, patch: Triple) -> Triple:
        """Number of blocks of a patch along each axis."""
        x, y, z = (size // self.block for size in patch)
        return x, y, z

    def num_hidden(self, patch: Triple) -> int:
        """Number of hidden blocks of a patch."""
        return round(self.ratio * prod(self.grid(patch)))

    def problems(
        self, name: str, patch: Triple, methods: Mapping[str, int], *, own_decoder: bool = False, others: str = ""
    ) -> list[str]:
        """List the settings that do not fit a network and a patch, with the fixes.

        Args:
            name: name of the network.
            patch: voxels of a patch along each axis.
            methods: `pretrain_methods` of the network.
            own_decoder: `pretrains_decoder` of the network.
            others: names of networks that can be pre-trained, for the message.
        """
        if not methods:
            return [f"pretrain: {name} has no encoder that can be pre-trained ({others} have one); set model.name"]
        problems = []
        if self.method not in methods:
            problems.append(
                f"pretrain.method: {self.method} replaces or leaves out tokens, and {name} has none (expected"
                f" {' or '.join(methods)}, got {self.method}); set it to {next(iter(methods))}"
            )
        unit = methods.get(self.method, 1)
        if self.block % unit:
            fixed = unit * max(1, round(self.block / unit))
            problems.append(
                f"pretrain.block: expected a multiple of {unit} for method {self.method} with {name}, got {self.block};"
                f" try {fixed}"
            )
        for key, default in DecoderConfig() if own_decoder else ():
            if getattr(self.decoder, key) != default:
                problems.append(
                    f"pretrain.decoder.{key}: has no effect, because {name} reconstructs with its own decoder; remove"
                    f" it, or set it to its default {default}"
                )
        if any(size % self.block for size in patch):
            problems.append(
                f"pretrain.block: blocks of {self.block} do not tile data.patch {list(patch)}; choose a divisor of all"
                " three"
            )
        else:
            blocks = prod(self.grid(patch))
            if not 0 < self.num_hidden(patch) < blocks:
                problems.append(
                    f"pretrain.ratio: {self.ratio} hides {self.num_hidden(patch)} of the {blocks} blocks of a patch"
                    " (expected at least one hidden and one visible block); choose smaller blocks, a larger data.patch,"
                    " or another ratio"
                )
        return problems
