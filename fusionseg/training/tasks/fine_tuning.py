"""Fine-tuning of a trained encoder: frozen parameters, and a learning rate for each layer."""

from __future__ import annotations

import logging
import re
from typing import Any

from torch import nn

from fusionseg.config import RunConfig

log = logging.getLogger("fusionseg")
_BEFORE_STAGE = re.compile(r"(layers\d)c\.")


def freeze_encoder(model: nn.Module, config: RunConfig) -> None:
    """Freeze the encoder if `finetune` freezes it for the whole run: no gradient is computed for it.

    Call it before the network is wrapped by DDP and before the optimizer is built.
    """
    if config.finetune.whole_run and not config.finetune.from_scratch:
        for _, parameter in _encoder(model, config):
            parameter.requires_grad_(False)


def parameter_groups(model: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
    """Group the parameters that learn: the layers of the encoder, the first layer first, then the rest.

    See `Task.parameter_groups`. Without fine-tuning there is one group, in the order of the model.

    The layer-wise decay is that of BEiT (Bao et al., 2022, arXiv:2106.08254) after ELECTRA (Clark et al., 2020,
    arXiv:2003.10555): layer l of L at lr * layer_decay^(L - l), from the patch embedding or the stem (0) to the last
    block or level (L - 1).
    """
    finetune = config.finetune
    treated = finetune.layer_decay != 1 or finetune.freeze_steps is not None
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    encoder = [(name, parameter) for name, parameter in _encoder(model, config) if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    if encoder and treated and not finetune.from_scratch:
        layers = encoder_layers([name for name, _ in encoder], config.model.encoder_layer)
        depth = max(layers.values()) + 1
        for layer in range(depth):
            groups.append(
                {
                    "params": [parameter for name, parameter in encoder if layers[name] == layer],
                    "lr_scale": finetune.layer_decay ** (depth - layer),
                    "frozen_steps": finetune.freeze_steps or 0,
                }
            )
    inside = {id(parameter) for group in groups for parameter in group["params"]}
    rest = [parameter for parameter in trainable if id(parameter) not in inside]
    groups.append({"params": rest, "lr_scale": 1.0, "frozen_steps": 0})
    _log(groups, config)
    return groups


def encoder_layers(names: list[str], pattern: str) -> dict[str, int]:
    """Return the layer of each parameter of an encoder, from 0.

    Parameters before the first match of the pattern are layer 0 (a patch embedding, a stem). A module between two
    layers (Swin's patch merging) or after the last one (a norm) belongs to the layer before it. The convolutions before
    a stage (Swin UNETR V2) belong to the first block of the stage.

    Args:
        names: the names of the encoder's parameters, in the order of the module.
        pattern: regular expression of a layer, see `NetworkSection.encoder_layer`.
    """
    begins = [re.match(pattern, name) for name in names]
    found = list(dict.fromkeys(begin[0] for begin in begins if begin))
    first = 0 if begins and begins[0] else 1  # without a stem, the first match is layer 0
    layers: dict[str, int] = {}
    current = 0
    for name, begin in zip(names, begins, strict=True):
        if begin:
            layers[name] = current = found.index(begin[0]) + first
        elif stage := _BEFORE_STAGE.match(name):  # in the module these come after all stages
            layers[name] = next(n for n, block in enumerate(found, first) if block.startswith(f"{stage[1]}."))
        else:
            layers[name] = current
    return layers


def _encoder(model: nn.Module, config: RunConfig) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of the encoder, each with its name within the encoder; none if there is no encoder."""
    if config.model.encoder is None:
        return []
    return list(model.get_submodule(config.model.encoder).named_parameters())


def _log(groups: list[dict[str, Any]], config: RunConfig) -> None:
    finetune = config.finetune
    if finetune.from_scratch:
        log.info("finetune: from_scratch, so the network keeps its initial weights, and no part of it is frozen")
        return
    if finetune.layer_decay != 1:
        *encoder, rest = (config.optim.lr * group["lr_scale"] for group in groups)
        log.info(
            "finetune: learning rates of the encoder's %d layers from %.3g (the first) to %.3g, of the rest %.3g",
            len(encoder),
            encoder[0],
            encoder[-1],
            rest,
        )
    if finetune.freeze != "none":
        until = f"for {finetune.freeze_steps} steps" if finetune.freeze_steps else "for the whole run"
        log.info("finetune: the encoder is frozen %s", until)
