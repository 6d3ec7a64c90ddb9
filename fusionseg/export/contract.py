"""The contract of an exported model: how images are prepared for its networks, and what the outputs mean.

It holds everything that a program needs to make the masks of `fusionseg predict` from image files. docs/export.md
describes its fields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusionseg.config import DataConfig
from fusionseg.config.data.splits import anonymous_fold
from fusionseg.config.outside_part import outside_parts
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.volume import channel_settings, crop_channels
from fusionseg.inference.predictor import Predictor
from fusionseg.inference.trained_network import TrainedNetwork
from fusionseg.runs.json_files import JsonObject
from fusionseg.utils.version import __version__

CONTRACT = "contract.json"
VERSION = 1
"""The version of the contract. A runner refuses another one."""


def contract_of(predictor: Predictor, *, name: str, licence: str | None) -> JsonObject:
    """Describe the networks of a predictor, without the programs, which `with_programs` adds.

    Args:
        predictor: one network, or an ensemble.
        name: of the model.
        licence: of the weights; None if it is not stated.
    """
    members = [_member(predictor, index) for index in range(len(predictor.members))]
    return {
        "contract": VERSION,
        "name": name,
        "licence": licence,
        "versions": {"fusionseg": __version__, "torch": str(torch.__version__)},
        "channels": list(predictor.channels),
        "output": _output(predictor.scheme),
        "members": members,
    }


def with_programs(contract: JsonObject, programs: Sequence[Mapping[str, Any]]) -> JsonObject:
    """Add the programs of the members to a contract.

    Args:
        contract: the result of `contract_of`.
        programs: for each member its `program` (a file name), and the largest number of windows that the program takes
            at once, `batch`; None takes any number.
    """
    members = []
    for member, program in zip(contract["members"], programs, strict=True):
        batch = member["window"]["batch"] if program["batch"] is None else program["batch"]
        window = {**member["window"], "batch": batch}
        members.append({"program": program["program"], **member, "window": window})
    return {**contract, "members": members}


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights: of their names, types, shapes and values, in the order of the names.

    Args:
        state: the state dictionary of a network.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.view(torch.uint8).numpy().tobytes() if value.dim() else repr(value.item()).encode())
    return digest.hexdigest()


def refusals(member: TrainedNetwork) -> list[str]:
    """Parts of the preparation that only this program has, so that a runner of its own cannot prepare images.

    Args:
        member: the network.
    """
    data, found = member.config.data, []
    if data.transforms:
        found.append("data.transforms")
    if data.reader is not None:
        found.append("data.reader")
    return found


def _member(predictor: Predictor, index: int) -> JsonObject:
    member, (positions, outputs) = predictor.members[index], predictor.orders[index]
    config, settings = member.config, predictor.settings(member)
    return {
        "input": input_settings(config.data, member.channels, positions),
        "window": {
            "patch": list(config.data.patch),
            "overlap": settings.overlap,
            "blend": settings.blend,
            "batch": settings.window_batch,
        },
        "outputs": list(outputs),
        "network": {
            "name": config.model.name,
            "parameters": sum(parameter.numel() for parameter in member.model.parameters()),
            "parts_from_outside": sorted({part.name for _, part in outside_parts(config)}),
            "weights_sha256": weights_hash(member.model.state_dict()),
        },
        "training": {
            "run": config.name,
            "checkpoint": member.path.name,
            "step": member.step,
            "precision": config.train.precision,
            "seed": config.seed,
            "fold": anonymous_fold(config.data.fold),
        },
    }


def input_settings(data: DataConfig, channels: Sequence[str], positions: Sequence[int]) -> JsonObject:
    """The preparation of an image for a member.

    Args:
        data: the section `data` of the member.
        channels: names of the channels that the member reads.
        positions: of these channels among those of the image.
    """
    names = [channels[list(positions).index(place)] for place in range(len(positions))]
    crop = data.crop_foreground
    return {
        "orientation": data.orientation,
        "spacing_mm": None if data.spacing is None else list(data.spacing),
        "interpolation": "linear",
        "crop_foreground": None
        if crop is None
        else {
            "threshold": crop.threshold,
            "margin": crop.margin,
            "channels": crop_channels(data, names, len(names), []),
        },
        "transforms": [part.name for part in data.transforms],
        "intensity": [_intensity(setting) for setting in channel_settings(data, names, len(names))],
        "channels": list(positions),
    }


def _intensity(setting: Any) -> JsonObject:
    keys = ("mode", "clip", "percentiles", "nonzero", "mean", "deviation")
    values = {key: getattr(setting, key) for key in keys}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _output(scheme: LabelScheme) -> JsonObject:
    """The outputs of the networks, and the value of each in a mask."""
    if scheme.sigmoid:
        names, values = list(scheme.output_names), list(scheme.region_order)
    else:
        names, values = list(scheme.names), [label.values[0] for label in scheme.classes]
    return {
        "activation": "sigmoid" if scheme.sigmoid else "softmax",
        "names": names,
        "values": values,
        "dtype": scheme.value_dtype.name,
        "value_names": {str(value): name for value, name in sorted(scheme.value_names.items())},
    }
