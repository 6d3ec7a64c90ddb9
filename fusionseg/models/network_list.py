"""List of networks with their cost, for `fusionseg models`: as text, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from fusionseg.config.loading import validate_section
from fusionseg.config.outside import is_outside
from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.registry import networks
from fusionseg.config.section import Triple
from fusionseg.models.cost import NetworkCost, network_cost
from fusionseg.utils.errors import UserError, suggest


@dataclass(frozen=True)
class ListedNetwork:
    """A network of the list, with its cost or the problem with the patch."""

    name: str
    about: str
    """Description of the networks of its section, with the paper."""
    settings: str
    """Settings that the name of the network sets."""
    cost: NetworkCost | None
    problem: str | None
    """Reason why the network cannot use the patch."""


def default_configs(names: Sequence[str] = ()) -> list[NetworkSection]:
    """Return the `model` sections of these networks with default settings.

    Args:
        names: names of networks, or dotted paths; without names, all built-in networks.

    Raises:
        UserError: there is no network of one of the names.
    """
    known = networks.built_in()
    if unknown := [name for name in names if name not in known and not is_outside(name)]:
        raise UserError([f"there is no network {name!r}; {suggest(name, known)}" for name in unknown])
    return [validate_section(networks.section(name), {"name": name}) for name in names or known]


def list_networks(
    configs: Iterable[NetworkSection],
    patch: Triple,
    *,
    in_channels: int,
    out_channels: int,
    checkpoint_activations: bool = False,
) -> list[ListedNetwork]:
    """Count the cost of each network that can use the patch.

    Args:
        configs: `model` sections.
        patch: X, Y, Z in voxels.
        in_channels: channels of the volumes.
        out_channels: number of classes, the background included.
        checkpoint_activations: compute activations again in the backward pass, if the network supports it.
    """
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
        listed.append(ListedNetwork(config.name, about(type(config)), settings, cost, reason))
    return listed


def about(section: type[NetworkSection]) -> str:
    """Return the first paragraph of the documentation of a section, and that of its names if it has several."""
    parts = [(section.__doc__ or "").split("\n\n")[0]]
    name = section.model_fields["name"]
    if len(get_args(name.annotation)) > 1:
        parts.append(name.description or "")
    return " ".join(" ".join(parts).split()).removesuffix(".")


def to_text(listed: Sequence[ListedNetwork]) -> str:
    """Return the list in aligned columns."""
    header = ("network", "parameters", "multiply-adds", "activations", "implementation")
    rows = [header, *((*_cells(each), *_implementation(each)) for each in listed)]
    widths = [max(len(row[column]) for row in rows if len(row) == len(header)) for column in range(len(header))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for name, *rest in rows:
        aligned = rest if len(rest) == 1 else [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned]))
    return "\n".join(lines)


def to_markdown(listed: Sequence[ListedNetwork]) -> str:
    """Return the list as a Markdown table; the first network of each section has the description of the section."""
    described = ""
    lines = ["| name | what it is | parameters | multiply-adds | activations |", "|---|---|--:|--:|--:|"]
    for network in listed:
        name, *rest = _cells(network)
        texts = [text for text in (network.about if network.about != described else "", network.settings) if text]
        described = network.about
        cells = [f"`{name}`", ". Here: ".join(texts) or "as above", *rest, *([""] * (3 - len(rest)))]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def to_json(listed: Sequence[ListedNetwork]) -> list[dict[str, Any]]:
    """Return one object for each network; the fields of the cost are null if there is a problem."""
    unknown = dict.fromkeys(field.name for field in fields(NetworkCost))
    return [
        {
            "name": network.name,
            "about": network.about,
            "settings": network.settings,
            **(unknown if network.cost is None else asdict(network.cost)),
            "problem": network.problem,
        }
        for network in listed
    ]


def _cells(network: ListedNetwork) -> tuple[str, ...]:
    if network.cost is None:
        return network.name, f"- {network.problem}"
    cost = network.cost
    return (
        network.name,
        f"{cost.parameters:,}",
        _scaled(cost.multiply_adds).rstrip(),
        f"{_scaled(cost.activation_bytes)}B",
    )


def _implementation(network: ListedNetwork) -> tuple[str, ...]:
    return () if network.cost is None else (network.cost.implementation,)


def _scaled(number: int) -> str:
    """Return a number with three digits and a prefix: 318 G, 5.13 G, 889 M."""
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
