"""Tiny configurations of all networks, for fast tests."""

from __future__ import annotations

from typing import Any

from fusionseg.config.registry import networks

# Name of the section's class -> settings, and a patch that the network accepts.
TINY: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    # the second block of a stage shifts its windows
    "SwinConfig": ({"feature_size": 12, "depths": [2, 1, 1, 1], "window_size": 4}, (64, 32, 32)),
    "UNetConfig": ({"channels": [4, 8, 8, 8], "deep_supervision": True}, (16, 16, 16)),
    "MonaiUNetConfig": ({"channels": [4, 8, 8], "num_res_units": 1}, (16, 16, 16)),
    "SegResNetConfig": ({"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}, (16, 16, 16)),
    "SegResNetDSConfig": ({"init_filters": 4, "blocks_down": [1, 1, 1]}, (16, 16, 16)),
    "UNETRConfig": ({"feature_size": 2, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2}, (32, 16, 16)),
    "NNUNetConfig": ({"filters": [4, 8, 8, 8]}, (16, 16, 16)),
    "ResEncConfig": ({"channels": [4, 8, 8, 8], "blocks": [1, 1, 1, 1]}, (16, 16, 16)),
    "MedNeXtConfig": ({}, (32, 16, 16)),
}
# Settings that replace large ones which a name sets.
TINIER: dict[str, dict[str, Any]] = {"swin_fusion_full": {"fusion": {"widths": 8}}}
NETWORKS = networks.built_in()


def tiny(name: str) -> dict[str, Any]:
    """Return the keys of a configuration for the network of a name: `model`, and `patch` under `data`."""
    settings, patch = TINY[NETWORKS[name].__name__]
    return {"model": {"name": name, **settings, **TINIER.get(name, {})}, "data": {"patch": list(patch)}}
