"""Networks from outside: a class or function of the user, or of an installed library, that returns a torch module."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fusionseg.config.outside import PartError
from fusionseg.config.outside_part import OutsidePart, takes
from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.registry import networks
from fusionseg.config.section import Triple

if TYPE_CHECKING:
    from torch import nn


@networks.register_outside
class OutsideNetwork(OutsidePart, NetworkSection):
    """A network of the user's own, or of an installed library, such as monai.networks.nets:DynUNet.

    The arguments in_channels, out_channels, img_size (data.patch) and, unless `args` has it, spatial_dims (3) are
    supplied if it has them. It must map volumes (B, C, X, Y, Z) to logits (B, K, X, Y, Z); in training mode with deep
    supervision, to a list of logits, full resolution first.
    """

    supplied: ClassVar[tuple[str, ...]] = ("in_channels", "out_channels", "img_size")
    defaults: ClassVar[tuple[str, ...]] = ("spatial_dims",)

    def build(
        self, *, in_channels: int, out_channels: int, patch: Triple | None, checkpoint_activations: bool
    ) -> nn.Module:
        """Build the network with new weights; see `fusionseg.models.build_model`.

        Raises:
            PartError: the part returns no torch module.
            ValueError: the part needs the patch, but `patch` is None.
        """
        from torch import nn

        from fusionseg.models.outputs import outputs_as_list

        part = self.part
        known = {"in_channels": in_channels, "out_channels": out_channels, "spatial_dims": 3, "img_size": patch}
        supplied = {key: value for key, value in known.items() if takes(part, key) and key not in self.args}
        if "img_size" in supplied and patch is None:
            raise ValueError(f"build_model: {self.name} needs the size of the volumes; give the argument patch")
        network = part(**supplied, **self.args)
        if not isinstance(network, nn.Module):
            raise PartError(f"{self.name} gives a {type(network).__name__} (expected a torch.nn.Module); name another")
        network.register_forward_hook(outputs_as_list)
        return network

    def patch_problem(self, patch: Triple) -> str | None:
        """Return None: the network is tried on a patch before training instead."""
        return None
