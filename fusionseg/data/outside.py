"""Parts of the user's own in the data room: how they are made, and how their exceptions are reported."""

from __future__ import annotations

import traceback
from typing import Any

from fusionseg.config.outside_part import OutsidePart
from fusionseg.utils.errors import UserError


def make_part(config: OutsidePart, key: str) -> Any:
    """Call the class or function that a configuration names with its arguments.

    Args:
        config: the section of the part.
        key: the key of the section, for messages.

    Raises:
        UserError: the call raised an exception.
    """
    try:
        return config.part(**config.args)
    except Exception as error:  # the user's own code may raise anything
        raise UserError(
            f"{key}: {config.name} cannot be made with args {config.args}: {raised_by(error)}; correct the"
            " arguments, or the code"
        ) from error


def raised_by(error: BaseException) -> str:
    """Describe an exception of a user's code: its type, its message, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}".partition("\n")[0] + place
