"""Which runs are meant: found without importing what trains them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusionseg.utils.errors import UserError


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """The run folders among some paths, and those within the others.

    Raises:
        UserError: a path is neither a run folder nor a folder of such.
    """
    folders, problems = [], []
    for path in paths:
        inside = sorted(file.parent for file in path.glob("*/config.yaml") if file.is_file()) if path.is_dir() else []
        if (path / "config.yaml").is_file():
            folders.append(path)
        elif inside:
            folders += inside
        else:
            problems.append(f"{path}: is neither a run folder (it has no config.yaml) nor a folder of such")
    if problems:
        raise UserError(problems)
    return list(dict.fromkeys(folders))
