"""The members of an ensemble: their channels and outputs in the order of the first member."""

from __future__ import annotations

from fusionseg.data.formats.channel_names import channel_order, label_order
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.inference.trained_network import TrainedNetwork
from fusionseg.utils.errors import UserError


def member_orders(member: TrainedNetwork, first: TrainedNetwork) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Match the channels and the outputs of an ensemble member with those of the first member by name.

    Returns:
        The positions of the member's channels among those of the first member, and the positions of the first member's
        outputs among those of the member.

    Raises:
        UserError: the names are not the same.
    """
    channels = channel_order(member.channels, first.channels)
    outputs = _output_order(first.scheme, member.scheme)
    if channels is None or outputs is None:
        raise UserError(
            f"{member.path}: was trained on the channels {list(member.channels)} and {_outputs_text(member.scheme)},"
            f" and {first.path} on {list(first.channels)} and {_outputs_text(first.scheme)}: an ensemble needs the same"
            " channels and labels, in any order, and the same kind of outputs"
        )
    return channels, outputs


def _output_order(wanted: LabelScheme, given: LabelScheme) -> tuple[int, ...] | None:
    """Find the positions of the outputs of one network among those of another; None if the outputs differ.

    Regions are the same if their names and the names of their classes are.
    """
    if wanted.sigmoid != given.sigmoid:
        return None
    if not wanted.sigmoid:
        return label_order(wanted.labels, given.labels)
    own, other = (_contents(scheme) for scheme in (wanted, given))
    return tuple(list(other).index(name) for name in own) if own == other else None


def _contents(scheme: LabelScheme) -> dict[str, set[str]]:
    """The names of the classes in each output, by its name; without upper case."""
    names = [name.casefold() for name in scheme.names]
    return {
        output.casefold(): {name for name, inside in zip(names, row, strict=True) if inside}
        for output, row in zip(scheme.output_names, scheme.membership, strict=True)
    }


def _outputs_text(scheme: LabelScheme) -> str:
    """Name the outputs in a message: "the labels [...]", "the regions [...]"."""
    if not scheme.sigmoid:
        return f"the labels {list(scheme.names)}"
    return f"the {'regions' if scheme.is_regions else 'sigmoid outputs'} {list(scheme.output_names)}"
