"""The networks that are MONAI's as they stand: its weights fit them, name for name.

Where one has deep supervision, its forward pass gives in training a list of logits, the full resolution first, each at
its own resolution.
"""

from __future__ import annotations

import warnings
from typing import Any

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.pos_embed_utils import build_sincos_position_embedding
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.mednext import create_mednext
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.segresnet_ds import SegResNetDS
from monai.networks.nets.unetr import UNETR
from torch import Tensor, nn

from fusionseg.config.networks import (
    MedNeXtConfig,
    NetworkSection,
    NNUNetConfig,
    SegResNetConfig,
    SegResNetDSConfig,
    UNETRConfig,
)
from fusionseg.config.networks.from_monai import UNETR_TOKEN

Triple = tuple[int, int, int]


def build_from_monai(
    config: NetworkSection, in_channels: int, out_channels: int, *, patch: Triple | None = None
) -> nn.Module:
    """The network that a `model` section describes.

    Args:
        patch: the size of the volumes that it will see; UNETR alone asks for it.

    Raises:
        ValueError: UNETR without a patch.
    """
    common: dict[str, Any] = {"spatial_dims": 3, "in_channels": in_channels, "out_channels": out_channels}
    match config:
        case SegResNetConfig():
            return SegResNet(
                **common,
                init_filters=config.init_filters,
                dropout_prob=config.dropout or None,  # MONAI: None is no dropout layer at all
                blocks_down=config.blocks_down,
                blocks_up=config.blocks_up,
            )
        case SegResNetDSConfig():
            return SegResNetDS(
                **common,
                init_filters=config.init_filters,
                blocks_down=config.blocks_down,
                norm=config.norm,
                dsdepth=len(config.blocks_down) - 1 if config.deep_supervision else 1,
            )
        case UNETRConfig():
            if patch is None:
                raise ValueError("build_model: unetr embeds the positions within a patch: give it the patch's size")
            return _unetr(config, patch, common)
        case NNUNetConfig():
            return NNUNet(config, in_channels, out_channels)
        case MedNeXtConfig():
            network = create_mednext(
                config.size, **common, kernel_size=config.kernel_size, deep_supervision=config.deep_supervision
            )
            network.register_forward_hook(_as_list)
            return network
    raise AssertionError(f"no network for {type(config).__name__}")


def _unetr(config: UNETRConfig, patch: Triple, common: dict[str, Any]) -> UNETR:
    network = UNETR(
        **common,
        img_size=patch,
        feature_size=config.feature_size,
        hidden_size=config.hidden_size,
        mlp_dim=config.mlp_dim,
        num_heads=config.num_heads,
        dropout_rate=config.dropout,
    )
    if config.pos_embed == "sincos":
        grid = [size // UNETR_TOKEN for size in patch]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.meshgrid")  # MONAI names no indexing and means the default
            embedding = build_sincos_position_embedding(grid, config.hidden_size, spatial_dims=3)
        network.vit.patch_embedding.position_embeddings = embedding
    for block in network.vit.blocks:
        # MONAI's blocks carry the parts of a cross-attention, unused here: no gradient reaches them, and DDP would wait
        # for one. They stay, frozen, so that MONAI's weights fit.
        block.norm_cross_attn.requires_grad_(False)
        block.cross_attn.requires_grad_(False)
    return network


class NNUNet(DynUNet):
    """MONAI's `DynUNet` as nnU-Net's U-Net: its function, and its state dict key for key.

    Two things differ. MONAI keeps the logits of the deep-supervision heads in a list of the module and returns them
    stacked, stretched to full resolution; here they are returned as they are, and computed in training only. And MONAI
    drops values of the logits too; here dropout ends before the heads.
    """

    def __init__(self, config: NNUNetConfig, in_channels: int, out_channels: int) -> None:
        levels = len(config.filters)
        norm: dict[str, tuple[str, dict[str, Any]]] = {
            "instance": ("instance", {"affine": True}),
            "batch": ("batch", {}),
            "group": ("group", {"num_groups": 8}),
        }
        super().__init__(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=config.level_kernels,
            strides=((1, 1, 1), *config.level_strides),
            upsample_kernel_size=config.level_strides,
            filters=config.filters,
            dropout=config.dropout or None,
            norm_name=norm[config.norm],
            deep_supervision=config.deep_supervision,
            # nnU-Net weighs its lowest head with 0; a network of three levels would be left with none
            deep_supr_num=max(1, levels - 3),
            res_block=config.name == "nnunet_residual",
            trans_bias=True,
        )

    def get_output_block(self, idx: int) -> UnetOutBlock:
        return UnetOutBlock(self.spatial_dims, self.filters[idx], self.out_channels)

    def forward(self, x_BCXYZ: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, K, X, Y, Z); in training with deep supervision a list of them, the full resolution first."""
        skips = [self.input_block(x_BCXYZ)]
        for down in self.downsamples:
            skips.append(down(skips[-1]))
        x = self.bottleneck(skips[-1])
        decoded = []  # from the lowest resolution up
        for up in self.upsamples:
            x = up(x, skips.pop())
            decoded.append(x)
        logits: Tensor = self.output_block(x)
        if not (self.training and self.deep_supervision):
            return logits
        return [
            logits,
            *(head(x) for head, x in zip(self.deep_supervision_heads, decoded[-2::-1], strict=False)),
        ]


def _as_list(module: nn.Module, inputs: Any, output: Any) -> Any:
    """MedNeXt gives its several logits as a tuple."""
    return list(output) if isinstance(output, tuple) else output
