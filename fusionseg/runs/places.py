"""Checks of the paths in a configuration, before anything is opened: the data set, the output, the first weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionseg.utils.errors import Problems, UserError
from fusionseg.utils.files import user_path, writable_folder


def check_places(plain: Mapping[str, Any]) -> None:
    """Make sure that the paths in a configuration can be used. The rest of the configuration may be wrong.

    Args:
        plain: plain values under the keys of the file. What is no path there is passed over.

    Raises:
        UserError: `data.root` or `init_from` does not exist, or `output` cannot be written.
    """
    problems = Problems()
    data, output, init_from = plain.get("data"), plain.get("output", "runs"), plain.get("init_from")
    root = data.get("root") if isinstance(data, Mapping) else None
    for key, text in (("data.root", root), ("init_from", init_from)):
        with problems.collect():
            _check_exists(key, text)
    if isinstance(output, str):
        with problems.collect():
            writable_folder(user_path(output), "output")
    problems.raise_if_any()


def _check_exists(key: str, text: Any) -> None:
    if isinstance(text, str) and not user_path(text).exists():
        raise UserError(f"{key}={Path(text)}: does not exist (from here, {Path.cwd()}): correct the path")
