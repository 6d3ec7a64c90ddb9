"""Choice between hand-written backward passes and their reference, `model.implementation`.

Blocks of Swin UNETR and the blocks of fused skips have hand-written backward passes, which take less time and memory.
Their reference are MONAI's blocks and torch's `scaled_dot_product_attention`, differentiated by autograd. Both have the
same weights, and the same output and gradients up to rounding (1e-11 in float64).

A network is built with the hand-written passes. `set_implementation_` replaces them when the device is known.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from fusionseg.config.parts.sections import ImplementationSetting

Implementation = Literal["fused", "reference"]

AUTOMATIC: dict[str, Implementation] = {"cpu": "fused", "cuda": "fused"}
"""Choice of `auto` for each type of device.

On a CPU it is measured against MONAI's network (docs/benchmarks.md, "Swin UNETR and MONAI"). On a GPU it is an
assumption until it is measured (part `swin` of profiling/gpu_checks.sh): the hand-written passes launch fewer operators
and keep less memory.
"""


def chosen_implementation(setting: ImplementationSetting, device_type: str) -> Implementation:
    """Return the implementation for a type of device.

    Args:
        setting: `model.implementation`.
        device_type: "cpu" or "cuda".
    """
    return AUTOMATIC.get(device_type, "fused") if setting == "auto" else setting


def set_implementation_(model: nn.Module, setting: ImplementationSetting, device_type: str) -> None:
    """Replace the hand-written backward passes of a network, in place, if the reference is chosen for its device.

    The parameters and the keys of the state dict stay. A network without such passes is left as it is. A network that
    has its reference keeps it.

    Args:
        model: the network.
        setting: `model.implementation`.
        device_type: "cpu" or "cuda".
    """
    if chosen_implementation(setting, device_type) == "reference":
        # Imported here: it needs MONAI's networks, which take seconds.
        from fusionseg.models.reference import use_reference_

        use_reference_(model)


def implementation_of(model: nn.Module) -> Literal["fused", "reference", "plain"]:
    """Return the implementation that a network has; "plain" if none of its blocks has a hand-written backward pass."""
    marks = [getattr(type(module), "implementation", None) for module in model.modules()]
    return "fused" if "fused" in marks else "reference" if "reference" in marks else "plain"


def describe_implementation(model: nn.Module, setting: ImplementationSetting, device_type: str) -> str:
    """Return the implementation of a network and the reason in words: "fused (auto on a CPU)".

    The text is empty if there is nothing to say: the network has no hand-written pass, and none was asked for.

    Args:
        model: the network.
        setting: `model.implementation`.
        device_type: "cpu" or "cuda".
    """
    found = implementation_of(model)
    if found == "plain":
        casts = "; in 16 bits autocast casts its weights" if setting == "reference" else ""
        return "" if setting == "auto" else f"plain (the network has no hand-written backward pass{casts})"
    why = f"auto on a {'CPU' if device_type == 'cpu' else 'GPU'}" if setting == "auto" else "model.implementation"
    return f"{found} ({why})"
