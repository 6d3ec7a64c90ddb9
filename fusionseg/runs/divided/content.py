"""The content of a divided checkpoint: the tensors of this rank, and the other entries as JSON values.

An entry of the index is as it is in JSON, with these exceptions: `{"$tensor": name}`, `{"$tuple": [...]}`,
`{"$entries": [[key, value], ...]}` for a dictionary whose keys are no texts, and `{"$named": {...}, "$metadata": ...}`
for the state dict of a network, which has the versions of its modules as an attribute.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fusionseg.models.sharding.tensors import is_sharded, local_part, rows_of_parts
from fusionseg.runs.divided.part_file import code_of
from fusionseg.runs.json_files import JsonObject

_MARK = "$"
_TENSOR, _TUPLE, _ENTRIES, _NAMED, _METADATA = "$tensor", "$tuple", "$entries", "$named", "$metadata"


@dataclass
class DividedContent:
    """The share of a rank in a state that is saved."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    """Tensors by name, in the memory of the state: the parts of this rank and, on rank 0, what is not divided."""
    tensors: dict[str, JsonObject] = field(default_factory=dict)
    """Shape and type of each whole tensor; `rows` is the length of the part of each rank but the last ones."""
    entries: Any = None
    """The state with names in place of tensors, as JSON values."""


def divide(state: Mapping[str, Any], rank: int) -> DividedContent:
    """Choose what a rank saves of a state. No rank waits for another.

    Args:
        state: nested dictionaries, lists and tuples with tensors, numbers, texts and None; names and shapes
            are the same on each rank.
        rank: of this process.

    Raises:
        TypeError: an entry is of another type.
    """
    content = DividedContent()
    content.entries = _encoded((), state, content, rank)
    return content


def state_bytes(state: Any) -> int:
    """The bytes of all whole tensors of a state, the same on each rank."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict | list | tuple):
        return sum(map(state_bytes, state.values() if isinstance(state, dict) else state))
    return 0


def join(entries: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state of an index: the inverse of `divide`.

    Args:
        entries: of the index.
        tensors: whole tensors by name.

    Raises:
        KeyError, TypeError, ValueError: the entries are damaged.
    """
    if isinstance(entries, list):
        return [join(each, tensors) for each in entries]
    if not isinstance(entries, dict):
        return entries
    if _TENSOR in entries:
        return tensors[entries[_TENSOR]]
    if _TUPLE in entries:
        return tuple(join(entries[_TUPLE], tensors))
    if _ENTRIES in entries:
        return {join(key, tensors): join(value, tensors) for key, value in entries[_ENTRIES]}
    if _NAMED in entries:
        named = OrderedDict(join(entries[_NAMED], tensors))
        named._metadata = OrderedDict(join(entries[_METADATA], tensors))  # type: ignore[attr-defined]
        return named
    return {key: join(value, tensors) for key, value in entries.items()}


def _encoded(place: tuple[str, ...], state: Any, content: DividedContent, rank: int) -> Any:
    if isinstance(state, Tensor):
        return {_TENSOR: _add("/".join(place), state, content, rank)}
    if isinstance(state, dict):
        pairs = [(key, _encoded((*place, str(key)), value, content, rank)) for key, value in state.items()]
        if any(not isinstance(key, str) or key.startswith(_MARK) for key, _ in pairs):
            return {_ENTRIES: [[_encoded(place, key, content, rank), value] for key, value in pairs]}
        if isinstance(metadata := getattr(state, "_metadata", None), dict):
            return {_NAMED: dict(pairs), _METADATA: _encoded((*place, _METADATA), metadata, content, rank)}
        return dict(pairs)
    if isinstance(state, list | tuple):
        values = [_encoded((*place, str(index)), value, content, rank) for index, value in enumerate(state)]
        return values if isinstance(state, list) else {_TUPLE: values}
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"checkpoint.sharded: the entry {'/'.join(place)} is a {type(state).__name__}, which JSON lacks")


def _add(name: str, tensor: Tensor, content: DividedContent, rank: int) -> str:
    while name in content.tensors:  # two places of one name: a key with a slash
        name += "'"
    entry: JsonObject = {"shape": list(tensor.shape), "dtype": code_of(tensor.dtype)}
    if is_sharded(tensor):
        entry["rows"] = rows_of_parts(tensor)
        if (part := local_part(tensor)).numel():
            content.parts[name] = part
    elif rank == 0:
        content.parts[name] = tensor
    content.tensors[name] = entry
    return name
