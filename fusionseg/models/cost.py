"""What networks cost, found on the meta device: nothing is computed and nothing allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.registry import networks
from fusionseg.models import build_model
from fusionseg.utils.errors import UserError, suggest

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class NetworkCost:
    """Of one network, for one sample."""

    parameters: int
    """Numbers that are learned, and frozen ones that the network carries along."""
    multiply_adds: int
    """Of the convolutions, linear layers and attention in a forward pass in evaluation mode."""
    activation_bytes: int
    """What a forward pass in training keeps for the backward pass, in 32-bit floats; the loss not counted. Where a
    network computes differently on a CPU and on a GPU, as on a GPU."""


def network_cost(
    config: NetworkSection,
    patch: Triple,
    *,
    in_channels: int,
    out_channels: int,
    checkpoint_activations: bool = False,
) -> NetworkCost:
    """Cost of the network that a `model` section describes, for one sample (1, in_channels, *patch).

    Args:
        config: the `model` section; its `patch_problem` has nothing against the patch.
        patch: voxels along each axis.
        checkpoint_activations: recompute activations in the backward pass.
    """
    with torch.device("meta"):
        model = build_model(
            config,
            in_channels=in_channels,
            out_channels=out_channels,
            patch=patch,
            checkpoint_activations=checkpoint_activations,
        )
        image = torch.empty(1, in_channels, *patch)
    activations = saved_bytes(model.train(), lambda: model(image))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return NetworkCost(
        sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2, activations
    )


def saved_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps of `forward`: each piece of memory once, whole, and not the model's parameters."""
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Views and detached tensors are other objects on the same storage; holding one keeps its address from reuse.
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in parameters)


@dataclass(frozen=True)
class Listed:
    """A network of the list: its cost, or why it has none."""

    name: str
    about: str
    """What networks of its section are, with the source."""
    settings: str
    """What its name sets."""
    cost: NetworkCost | None
    problem: str | None
    """Why it cannot take the patch."""


def default_configs(names: Sequence[str] = ()) -> list[NetworkSection]:
    """The `model` sections that these names make by themselves; without names, those of all networks.

    Raises:
        UserError: there is no network of a name.
    """
    known = networks.built_in()
    if unknown := [name for name in names if name not in known]:
        raise UserError([f"there is no network {name!r}; {suggest(name, known)}" for name in unknown])
    return [known[name].model_validate({"name": name}) for name in names or known]


def list_networks(
    configs: Iterable[NetworkSection],
    patch: Triple,
    *,
    in_channels: int,
    out_channels: int,
    checkpoint_activations: bool = False,
) -> list[Listed]:
    """The cost of each network, or its problem with the patch."""
    listed = []
    for config in configs:
        cost, problem = None, config.patch_problem(patch)
        if problem is None:
            cost = network_cost(
                config,
                patch,
                in_channels=in_channels,
                out_channels=out_channels,
                checkpoint_activations=checkpoint_activations and config.can_checkpoint,
            )
        settings = _plain(config.model_dump(exclude_unset=True, exclude={"name"}))
        reason = problem and problem.removeprefix("data.patch: ").removeprefix(f"{config.name} ")
        listed.append(Listed(config.name, about(type(config)), settings, cost, reason))
    return listed


def about(section: type[NetworkSection]) -> str:
    """The first paragraph of what is documented on a section, and on its names where it has several."""
    parts = [(section.__doc__ or "").split("\n\n")[0]]
    name = section.model_fields["name"]
    if len(get_args(name.annotation)) > 1:
        parts.append(name.description or "")
    return " ".join(" ".join(parts).split()).removesuffix(".")


def to_text(listed: Sequence[Listed]) -> str:
    """Aligned columns for a terminal."""
    rows = [("network", "parameters", "multiply-adds", "activations"), *(_cells(entry) for entry in listed)]
    widths = [max(len(row[column]) for row in rows if len(row) == 4) for column in range(4)]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for name, *rest in rows:
        aligned = rest if len(rest) == 1 else [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned]))
    return "\n".join(lines)


def to_markdown(listed: Sequence[Listed]) -> str:
    """A table that says what each network is, too; what those of one section share, in the first of its rows."""
    said = ""
    lines = ["| name | what it is | parameters | multiply-adds | activations |", "|---|---|--:|--:|--:|"]
    for entry in listed:
        name, *rest = _cells(entry)
        what = [text for text in (entry.about if entry.about != said else "", entry.settings) if text]
        said = entry.about
        cells = [f"`{name}`", ". Here: ".join(what) or "as above", *rest, *([""] * (3 - len(rest)))]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def to_json(listed: Sequence[Listed]) -> list[dict[str, Any]]:
    """One object for each network; the cost's fields are null where there is a problem."""
    unknown = dict.fromkeys(field.name for field in fields(NetworkCost))
    return [
        {
            "name": entry.name,
            "about": entry.about,
            "settings": entry.settings,
            **(unknown if entry.cost is None else asdict(entry.cost)),
            "problem": entry.problem,
        }
        for entry in listed
    ]


def _cells(entry: Listed) -> tuple[str, ...]:
    if entry.cost is None:
        return entry.name, f"- {entry.problem}"
    cost = entry.cost
    return (
        entry.name,
        f"{cost.parameters:,}",
        _scaled(cost.multiply_adds).rstrip(),
        f"{_scaled(cost.activation_bytes)}B",
    )


def _scaled(number: int) -> str:
    """Three digits and a unit: 318 G, 5.13 G, 889 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            value = number / size
            return f"{value:.{max(0, 3 - len(str(round(value))))}f} {unit}"
    return f"{number} "


def _plain(settings: dict[str, Any]) -> str:
    parts = []
    for key, value in settings.items():
        if isinstance(value, dict):
            parts.append(f"{key} ({_plain(value)})" if value else key)
        else:
            parts.append(f"{key} {list(value) if isinstance(value, tuple) else value}")
    return ", ".join(parts)
