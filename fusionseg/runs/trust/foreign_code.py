"""The question before code is imported that a run folder or an archive from elsewhere names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionseg.runs.trust.consent import allow, listed_code
from fusionseg.runs.trust.known_code import is_known, remember_allowed
from fusionseg.runs.trust.library_code import is_harmless
from fusionseg.runs.trust.named_code import NamedCode, named_code


def unknown_code(plain: Mapping[str, Any]) -> list[NamedCode]:
    """List the code that the configuration of a run names, and that the user has neither trained with nor allowed.

    Args:
        plain: the configuration as the run folder has it.
    """
    listed = listed_code()
    return [
        code
        for code in named_code(plain)
        if code.name not in listed and code.file is not None and not is_known(code) and not is_harmless(code)
    ]


def check_code(plain: Mapping[str, Any], origin: Path) -> None:
    """Ask before code of others is imported. Call it before the configuration of a run folder is validated.

    Args:
        plain: the configuration as the run folder has it.
        origin: the file that has it, for the message.

    Raises:
        UserError: it names code that the user has neither trained with nor allowed, and nobody allows it now.
    """
    if unknown := unknown_code(plain):
        allow(
            f"{origin}: names code that you have not trained with, and that would be imported and run:",
            [f"  {code.key}: {code.name}, from {' and '.join(code.files)}" for code in unknown],
            [code.name for code in unknown],
        )
        remember_allowed(unknown)
