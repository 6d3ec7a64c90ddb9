"""Swin transformer encoder of Swin UNETR, with the output and state dict of MONAI's but less time and memory.

Sources: Z. Liu et al., "Swin Transformer" (2021, section 3, arXiv:2103.14030); A. Hatamizadeh et al., "Swin UNETR"
(2022, section 3.1, arXiv:2201.01266); for `residual_stages`, Y. He et al., "SwinUNETR-V2" (MICCAI 2023).

Tokens (B, X, Y, Z, C) have their channels last in the whole encoder, as layer norm and linear layers need them. A map
(B, C, X, Y, Z) is a view of them in channels-last memory format (`torch.channels_last_3d`), the fastest format for
convolutions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from monai.networks.blocks.patchembedding import PatchEmbed
from monai.networks.layers.drop_path import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusionseg.models.memory_efficient.autograd_helpers import matmul_dtype
from fusionseg.models.memory_efficient.convolution_blocks import ResidualBlock
from fusionseg.models.memory_efficient.layer_norm import LayerNorm, layer_norm
from fusionseg.models.swin.attention import WindowAttention, uses_whole_windows
from fusionseg.models.swin.mlp import Mlp
from fusionseg.models.swin.patch_merging import PatchMerging
from fusionseg.models.swin.score_bias import score_biases
from fusionseg.models.swin.window_layout import WindowLayout, window_layout


class SwinBlock(nn.Module):
    """Swin transformer block: window attention, then an MLP, each with a residual connection.

    Args:
        dim: channels.
        num_heads: attention heads.
        window_size: tokens of a window along each axis.
        shifted: shift the windows by half their size.
        drop_path: stochastic depth: probability that a sample skips the attention, and likewise the MLP, in training.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, *, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1 = LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x_BLC: Tensor, layout: WindowLayout, score_bias: Tensor | None = None) -> Tensor:
        """Map tokens (B, L, C) to tokens of the same shape; for `score_bias` see `WindowAttention`."""
        x_BLC = x_BLC + self.drop_path(self.attn(x_BLC, self.norm1, layout, score_bias))
        return x_BLC + self.drop_path(self.mlp(x_BLC, self.norm2))


class SwinStage(nn.Module):
    """Stage of the encoder: transformer blocks, then patch merging of 2 x 2 x 2 tokens into one.

    Every second block has shifted windows.

    Args:
        dim: channels C; the merged tokens have 2 C.
        num_heads: attention heads.
        window_size: tokens of a window along each axis.
        drop_path: stochastic depth rate of each block; its length is the number of blocks.
        use_checkpoint: keep only the input and compute the stage again in the backward pass.
    """

    def __init__(
        self, dim: int, num_heads: int, window_size: int, *, drop_path: Sequence[float], use_checkpoint: bool
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.use_checkpoint = use_checkpoint
        self.is_random = any(rate > 0 for rate in drop_path)
        self.blocks = nn.ModuleList(
            SwinBlock(dim, num_heads, window_size, shifted=bool(index % 2), drop_path=rate)
            for index, rate in enumerate(drop_path)
        )
        self.downsample = PatchMerging(dim)

    def forward(self, x_BXYZC: Tensor, score_biases: Sequence[Tensor | None]) -> Tensor:
        """Map tokens (B, X, Y, Z, C) to (B, X / 2, Y / 2, Z / 2, 2 C).

        Args:
            x_BXYZC: the tokens.
            score_biases: of each block; None for a block that makes its own.
        """
        if self.use_checkpoint and self.training:
            out: Tensor = checkpoint(
                self._forward, x_BXYZC, score_biases, use_reentrant=False, preserve_rng_state=self.is_random
            )
            return out
        return self._forward(x_BXYZC, score_biases)

    def _forward(self, x_BXYZC: Tensor, score_biases: Sequence[Tensor | None]) -> Tensor:
        batch, *size, channels = x_BXYZC.shape
        dims = (size[0], size[1], size[2])
        x = x_BXYZC.reshape(batch, -1, channels)
        for block, score_bias in zip(self.blocks, score_biases, strict=True):
            x = block(x, window_layout(dims, self.window_size, block.shifted, x.device), score_bias)
        merged: Tensor = self.downsample(x.view(x_BXYZC.shape))
        return merged


class SwinEncoder(nn.Module):
    """Patch embedding and four stages, with the keys of the state dict of MONAI's `SwinTransformer`.

    Args:
        in_channels: channels of the volumes.
        embed_dim: channels of the first hidden state; each further hidden state has twice as many.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: tokens of a window along each axis.
        drop_path_rate: stochastic depth rate of the last block; the rate rises linearly from 0 over the blocks.
        residual_stages: put a residual block of convolutions before each stage (Swin UNETR V2).
        checkpoint_stages: stages, counted from 1, that are computed again in the backward pass.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        *,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path_rate: float = 0.0,
        residual_stages: bool = False,
        checkpoint_stages: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(
            patch_size=2,
            in_chans=in_channels,
            embed_dim=embed_dim,
            norm_layer=None,  # type: ignore[arg-type]
        )
        last = max(sum(depths) - 1, 1)
        rates = iter([drop_path_rate * block / last for block in range(sum(depths))])
        for index, (depth, heads) in enumerate(zip(depths, num_heads, strict=True), start=1):
            stage = SwinStage(
                embed_dim * 2 ** (index - 1),
                heads,
                window_size,
                drop_path=[next(rates) for _ in range(depth)],
                use_checkpoint=index in checkpoint_stages,
            )
            self.add_module(f"layers{index}", nn.ModuleList([stage]))  # a list of one module, as in MONAI
        self.num_stages = len(depths)
        self.residual_stages = residual_stages
        if residual_stages:
            for index in range(1, self.num_stages + 1):
                channels = embed_dim * 2 ** (index - 1)
                self.add_module(f"layers{index}c", nn.ModuleList([ResidualBlock(channels, channels, 3)]))

    def forward(self, x_BCXYZ: Tensor, normalize: bool = True) -> list[Tensor]:
        """Return the five hidden states of volumes (B, in_channels, X, Y, Z), see `stages`."""
        return self.stages(self.patch_embed(x_BCXYZ), normalize)

    def stages(self, embedded_BCXYZ: Tensor, normalize: bool = True) -> list[Tensor]:
        """Return the five hidden states: the embedding and the outputs of the four stages.

        Args:
            embedded_BCXYZ: output of `patch_embed`, (B, embed_dim, X / 2, Y / 2, Z / 2).
            normalize: apply a layer norm without parameters over the channels of each hidden state.

        Returns:
            hidden states i = 0 to 4, (B, embed_dim * 2**i, X / 2**(i + 1), Y / 2**(i + 1), Z / 2**(i + 1)), in
            channels-last memory format.
        """
        x = embedded_BCXYZ.permute(0, 2, 3, 4, 1).contiguous()
        hidden = [x]
        biases = iter(self.score_biases(x))
        for index in range(1, self.num_stages + 1):
            if self.residual_stages:
                block = getattr(self, f"layers{index}c")[0]
                x = block(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).contiguous()
            stage = getattr(self, f"layers{index}")[0]
            x = stage(x, [next(biases) for _ in stage.blocks])
            hidden.append(x)
        if normalize:
            hidden = [self.normalise(state) for state in hidden]
        return [state.permute(0, 4, 1, 2, 3) for state in hidden]

    def normalise(self, state_BXYZC: Tensor) -> Tensor:
        """Apply a layer norm without parameters over the channels of a hidden state."""
        return layer_norm(state_BXYZC, state_BXYZC.shape[-1:])

    def score_biases(self, x_BXYZC: Tensor) -> Sequence[Tensor | None]:
        """Return the biases of the scores of all blocks, given the embedding; None for blocks that make their own."""
        if not uses_whole_windows(x_BXYZC):
            return self.no_score_biases()
        batch, x, y, z, _ = x_BXYZC.shape
        scores = []
        for index in range(1, self.num_stages + 1):
            stage = getattr(self, f"layers{index}")[0]
            for block in stage.blocks:
                layout = window_layout((x, y, z), stage.window_size, block.shifted, x_BXYZC.device)
                scores.append(block.attn.block_scores(layout))
            x, y, z = (-(-size // 2) for size in (x, y, z))
        return score_biases(scores, batch, matmul_dtype(x_BXYZC))

    def no_score_biases(self) -> list[None]:
        """Return None for each block."""
        return [None for index in range(1, self.num_stages + 1) for _ in getattr(self, f"layers{index}")[0].blocks]
