"""The question before code is imported that a run folder or an archive from elsewhere names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionseg.config.outside import is_installed
from fusionseg.runs.trust.consent import allow, listed_code
from fusionseg.runs.trust.known_code import is_known, remember_allowed
from fusionseg.runs.trust.named_code import NamedCode, named_code

_PACKAGE = Path(__file__).resolve().parents[2]
# Classes of these packages take numbers and texts, and import nothing by them, other than torch.hub:load,
# monai.bundle:run, or LoadImage(reader=...) and SaveImage(writer=...), which import any module.
_HARMLESS = re.compile(
    r"(torch\.(nn|optim)|monai\.(networks|losses|metrics|transforms)|fusionseg\.[a-z]+)(\.[a-z_0-9]+)*:"
    r"(?!Load|Save)[A-Z][A-Za-z0-9_]*"
)


def unknown_code(plain: Mapping[str, Any]) -> list[NamedCode]:
    """List the code that the configuration of a run names, and that the user has neither trained with nor allowed.

    Args:
        plain: the configuration as the run folder has it.
    """
    listed = listed_code()
    return [
        code
        for code in named_code(plain)
        if code.name not in listed and not _is_harmless(code) and code.file is not None and not is_known(code)
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
            [f"  {code.key}: {code.name}, from {code.file}" for code in unknown],
            [code.name for code in unknown],
        )
        remember_allowed(unknown)


def _is_harmless(code: NamedCode) -> bool:
    """Tell whether a dotted path is of a class of a library, and would be found in the library itself."""
    if _HARMLESS.fullmatch(code.name) is None or code.found_in is not None:
        return False
    file = code.file
    return file is None or is_installed(Path(file)) or Path(file).is_relative_to(_PACKAGE)
