"""Building of networks without a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from fusionseg.config.parts.sections import NetworkSection


def build_network(
    name: str, *, in_channels: int, out_channels: int, patch: Sequence[int] | None = None, **settings: Any
) -> nn.Module:
    """Build a network with new weights, for use in your own code.

    Args:
        name: a name that `fusionseg models` lists, such as "swin_fusion_od", or a dotted path `package.module:Class`.
        in_channels: channels of the volumes.
        out_channels: classes, background included.
        patch: voxels of the volumes along X, Y, Z; only UNETR needs it.
        settings: further keys of the `model` section, such as `feature_size=24`; docs/models.md has them.

    Returns:
        A module that maps float32 (B, in_channels, X, Y, Z) to logits (B, out_channels, X, Y, Z). In training mode, a
        network with `deep_supervision` gives a list of logits, the full resolution first.

    Raises:
        UserError: there is no such network, or a setting is wrong.

    Example:
        >>> import fusionseg, torch
        >>> network = fusionseg.build_network("unet", in_channels=1, out_channels=3, channels=[4, 8])
        >>> network(torch.zeros(1, 1, 16, 16, 16)).shape
        torch.Size([1, 3, 16, 16, 16])
    """
    import torch
    from pydantic import create_model

    from fusionseg.config import ModelConfig
    from fusionseg.config.loading import validate_section
    from fusionseg.config.section import Section
    from fusionseg.models import build_model
    from fusionseg.models.implementation import set_implementation_
    from fusionseg.utils.errors import UserError

    # A configuration with nothing but the network, so that messages name the keys as in a file: model.KEY.
    named = create_model("Named", __base__=Section, model=(ModelConfig, ...))
    # The types that a file has: a list, not a tuple.
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    validated: Any = validate_section(named, {"model": {"name": name, **plain}})
    section: NetworkSection = validated.model
    size = None
    if patch is not None:
        x, y, z = patch
        size = (x, y, z)
        if problem := section.patch_problem(size):
            raise UserError(problem)
    try:
        network = build_model(section, in_channels=in_channels, out_channels=out_channels, patch=size)
    except ValueError as error:
        raise UserError(f"model.name: {name}: {error}") from error
    set_implementation_(network, section.implementation, torch.get_default_device().type)
    return network
