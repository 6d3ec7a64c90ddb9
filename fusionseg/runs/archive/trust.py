"""Dotted paths in the configuration of an archive: an archive from elsewhere must not choose the code that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusionseg.config.outside_part import without_sources
from fusionseg.runs.trust.consent import allow, listed_code
from fusionseg.runs.trust.named_code import named_code


def trusted_config(plain: dict[str, Any], archive: Path) -> dict[str, Any]:
    """Return the configuration of an archive, if nothing in it would be imported without the user's word.

    Args:
        plain: the configuration as the archive has it.
        archive: for the message.

    Returns:
        The configuration without the folders from which parts were imported where the network was trained.

    Raises:
        UserError: it names code that `FUSIONSEG_TRUST` does not list, and that the user does not allow otherwise.
    """
    if refused := {code.name: code.key for code in named_code(plain) if code.name not in listed_code()}:
        allow(
            f"{archive}: its configuration names code of others, which would be imported and run:",
            [f"  {key}: {name}" for name, key in sorted(refused.items())],
            list(refused),
            "; the modules are looked up in the working directory and among the installed packages",
        )
    found: dict[str, Any] = without_sources(plain, ("found_in",))
    return found
