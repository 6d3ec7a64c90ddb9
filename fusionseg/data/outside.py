"""Make the user's own parts of the data room: readers, transforms, augmentations."""

from __future__ import annotations

from typing import Any

from fusionseg.config.outside import failure_text
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
            f"{key}: {config.name} cannot be made with args {config.args}: {failure_text(error)}; correct the"
            " arguments, or the code"
        ) from error
