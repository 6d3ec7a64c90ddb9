"""Section and builder of MONAI's MedNeXt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.registry import networks
from fusionseg.config.section import Triple
from fusionseg.models.patch_sizes import multiple_problem

if TYPE_CHECKING:
    from torch import nn


@networks.register()
class MedNeXtConfig(NetworkSection):
    """MONAI's MedNeXt (Roy et al., 2023, arXiv:2303.09975): a U-Net of ConvNeXt blocks, five levels from 32
    channels."""

    name: Literal["mednext"]
    """The MedNeXt."""
    size: Literal["S", "B", "M", "L"] = "S"
    """Size of the network, as in Table 1 of the paper: small, base, medium, large."""
    kernel_size: Literal[3, 5, 7] = 3
    """Kernel of the depthwise convolutions; the paper has 3 and 5."""
    deep_supervision: bool = True
    """Heads at all lower resolutions too; only the loss uses them."""

    def build(
        self, *, in_channels: int, out_channels: int, patch: Triple | None, checkpoint_activations: bool
    ) -> nn.Module:
        """Build the network with new weights; see `fusionseg.models.build_model`."""
        from monai.networks.nets.mednext import create_mednext

        from fusionseg.models.outputs import outputs_as_list

        network: nn.Module = create_mednext(
            self.size,
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=self.kernel_size,
            deep_supervision=self.deep_supervision,
        )
        network.register_forward_hook(outputs_as_list)  # MedNeXt returns several logits as a tuple
        return network

    def patch_problem(self, patch: Triple) -> str | None:
        """Return the problem of training on patches of this size, with a remedy; None if there is none."""
        return multiple_problem(self.name, patch, 16)
