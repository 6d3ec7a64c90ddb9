"""The cases of a data set in a layout of the user's own: a function that lists them as a datalist does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusionseg.config.outside import failure_text
from fusionseg.config.outside_part import OutsidePart
from fusionseg.data.formats.ignored_entries import LISTS
from fusionseg.utils.errors import UserError

KEY = "data.layout"


def own_datalist(root: Path, layout: OutsidePart) -> tuple[Path, dict[str, Any]]:
    """Call a layout of the user's own.

    Args:
        root: the folder or the file of the data set.
        layout: its section.

    Returns:
        The path that stands for the list, at whose folder relative paths start: `root` if it is a file, otherwise
        dataset.json in this folder, whether there is one or not. And the content of a datalist.

    Raises:
        UserError: there is no such path; the function raised an exception, or returned no datalist.
    """
    if not root.exists():
        raise UserError(f"data.root={root}: does not exist (expected what {KEY}={layout.name} reads); correct the path")
    try:
        content = layout.part(root, **layout.args)
    except UserError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f"{KEY}: {layout.name} fails for {root}: {failure_text(error)}; correct it") from error
    if not isinstance(content, dict) or not any(isinstance(content.get(name), list) for name in LISTS):
        found = (
            f"the keys {', '.join(map(str, content)) or 'none'}" if isinstance(content, dict) else repr(content)[:80]
        )
        raise UserError(
            f"{KEY}: {layout.name} returned no datalist (expected a dictionary with a list 'training', got {found});"
            " correct it"
        )
    return (root if root.is_file() else root / "dataset.json"), content
