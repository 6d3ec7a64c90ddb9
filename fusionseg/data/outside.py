"""Parts of the user's own in the data room: how they are made, and how their exceptions are reported."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from fusionseg.config.outside import is_installed
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
    """Describe an exception of a user's code: its type, its message, and the last line of the user's own file.

    Args:
        error: the exception, as it was caught.
    """
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).parents[1]
    own = [frame for frame in frames if not is_installed(file := Path(frame.filename)) and package not in file.parents]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}".partition("\n")[0] + place
