"""The writer of archives. The same networks give the same bytes."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionseg.runs.archive.anonymous import anonymous_config, anonymous_split
from fusionseg.runs.archive.layout import CONFIG, MANIFEST, NETWORK, VERSION, WEIGHTS, network_file
from fusionseg.runs.cases.split import Split
from fusionseg.runs.json_files import JsonObject
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import json_text, whole_file
from fusionseg.utils.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

_PACKAGES = ("torch", "monai", "safetensors")
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can have


@dataclass(frozen=True)
class ArchivedNetwork:
    """A trained network as an archive holds it."""

    weights: Mapping[str, Tensor]
    config: Mapping[str, Any]
    """The plain configuration of the run."""
    channels: Sequence[str]
    labels: Mapping[int, str]
    step: int
    split: Split | None
    """The cases that it was trained on. The archive has their digests, and not their names."""


def write_archive(
    path: Path, networks: Sequence[ArchivedNetwork], documents: Mapping[str, str], facts: JsonObject
) -> None:
    """Write an archive, whole or not at all.

    Args:
        path: of the archive.
        networks: one, or an ensemble.
        documents: texts by the name of their file, see `layout.DOCUMENTS`.
        facts: name and licence, for the manifest.

    Raises:
        UserError: a network has an entry that is no tensor.
        WriteError: the file cannot be written.
    """
    files = {name: text.encode("utf-8") for name, text in documents.items()}
    for index, network in enumerate(networks):
        files |= {network_file(index, name): content for name, content in _files_of(network).items()}
    manifest = {
        "fseg": VERSION,
        **facts,
        "versions": {"fusionseg": __version__, **{name: version(name) for name in _PACKAGES}},
        "networks": len(networks),
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in sorted(files.items())
        },
    }
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, content in ((MANIFEST, json_text(manifest).encode("utf-8")), *sorted(files.items())):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # as on Linux, on every system
            archive.writestr(entry, content)


def safetensors_bytes(weights: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file.

    Args:
        weights: tensors by name, on any device.
    """
    from safetensors.torch import save

    # Copies: safetensors refuses tensors that share memory, and those of another memory format.
    return save({name: value.detach().cpu().clone().contiguous() for name, value in weights.items()})


def _files_of(network: ArchivedNetwork) -> dict[str, bytes]:
    if others := [name for name, value in network.weights.items() if not hasattr(value, "untyped_storage")]:
        raise UserError(f"{others[0]}: an entry of the network is no tensor, which an archive cannot hold")
    facts = {
        "step": network.step,
        "channels": list(network.channels),
        "labels": {str(index): name for index, name in network.labels.items()},
        "split": None if network.split is None else anonymous_split(network.split),
    }
    return {
        CONFIG: json_text(anonymous_config(network.config)).encode("utf-8"),
        NETWORK: json_text(facts).encode("utf-8"),
        WEIGHTS: safetensors_bytes(network.weights),
    }
