"""Dotted paths in the configuration of an archive: an archive from elsewhere must not choose the code that runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fusionseg.config.outside_part import without_sources
from fusionseg.utils.errors import UserError

TRUST = "FUSIONSEG_TRUST"
"""Environment variable with the dotted paths, separated by commas, that archives may name."""
_NAMES = {
    *(("data", key) for key in ("series", "labels", "classes", "regions", "ignore", "annotated", "sampling")),
    *(("data", key) for key in ("fold", "group", "stratify", "weight", "target")),
    *(("data", "also", key) for key in ("series", "group")),
    ("augment", "mirror_pairs"),
    *(("evaluate", key) for key in ("lesions", "vessels")),
}
"""Keys of names that are never imported, such as those of classes. A colon in them, as in "tumour:core", is allowed."""


def trusted_config(plain: dict[str, Any], archive: Path) -> dict[str, Any]:
    """Return the configuration of an archive, if nothing in it would be imported without the user's word.

    Args:
        plain: the configuration as the archive has it.
        archive: for the message.

    Returns:
        The configuration without the folders from which parts were imported where the network was trained.

    Raises:
        UserError: it names code that `FUSIONSEG_TRUST` does not list.
    """
    trusted = {name.strip() for name in os.environ.get(TRUST, "").split(",")}
    refused = {text: ".".join(key) for key, text in _texts(plain) if _names_code(text) and text not in trusted}
    if refused:
        listed = ",".join(sorted(refused))
        where = "; ".join(f"{key}: {text}" for text, key in sorted(refused.items()))
        raise UserError(
            f"{archive}: its configuration names code of others, which would be imported and run ({where}). If you know"
            f" where the archive comes from and what this code does, set {TRUST}={listed}; the modules are looked up in"
            " the working directory and among the installed packages"
        )
    found: dict[str, Any] = without_sources(plain, ("found_in",))
    return found


def _names_code(text: str) -> bool:
    """Tell whether `config.outside.import_part` would import something for a text."""
    module, _, attribute = text.partition(":")
    return bool(module) and all(part.isidentifier() for part in attribute.split("."))


def _texts(plain: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each text in plain values with its key. A key is a text too: some sections are named by their keys."""
    if isinstance(plain, str):
        yield at, plain
    elif isinstance(plain, Mapping):
        for key, value in plain.items():
            yield at, str(key)
            if (*(name for name in at if not name.isdecimal()), str(key)) not in _NAMES:
                yield from _texts(value, (*at, str(key)))
    elif isinstance(plain, list | tuple):
        for index, value in enumerate(plain):
            yield from _texts(value, (*at, str(index)))
