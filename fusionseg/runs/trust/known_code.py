"""The code that this user has trained with or has allowed: one small file for each, in the user's folder of states.

A run folder cannot prove who made it: whoever hands it on could write that too. The record of the user, which nobody
else can write to, has the files that the user's own configurations have imported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fusionseg.runs.trust.named_code import BUILT_IN, NamedCode, named_code
from fusionseg.utils.files import write_json

log = logging.getLogger("fusionseg")

_NO_ENTRY = "none"
_here: dict[tuple[str, str], str | None] = {}
"""Knowledge of this process alone, for a record that cannot be written, such as in a read-only home."""


def record_folder() -> Path:
    """`$XDG_STATE_HOME/fusionseg/known_code`, by default in `~/.local/state` (XDG Base Directory Specification)."""
    given = os.environ.get("XDG_STATE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".local/state") / "fusionseg" / "known_code"


def remember_own(plain: Mapping[str, Any], *, write: bool) -> None:
    """Record the code of a configuration of the user's own, as it is trained: it is known from now on.

    Args:
        plain: the configuration, with the folders in which its parts were found.
        write: False keeps it for this process alone, such as a rank beside rank 0.
    """
    for code in named_code(plain):
        _remember(code, None, write=write)


def remember_allowed(allowed: Iterable[NamedCode]) -> None:
    """Record foreign code that the user has allowed. A later change of its file makes it unknown again.

    Args:
        allowed: the dotted paths.
    """
    for code in allowed:
        _remember(code, _content(code), write=True)


def is_known(code: NamedCode) -> bool:
    """Tell whether the user has trained with the file that a dotted path would import, or has allowed it.

    Args:
        code: the dotted path.
    """
    file = code.file
    if file is None or not _in_its_folder(code, file):
        return False
    content = _here[code.name, file] if (code.name, file) in _here else _recorded(code.name, file)
    return content is None or content == _content(code)


def _in_its_folder(code: NamedCode, file: str) -> bool:
    """Tell whether a module lies in the folder of the configuration, where its own imports are looked up first."""
    if code.found_in is None or not Path(code.found_in).is_dir() or file == BUILT_IN:
        return True
    return code.name.partition(":")[0].endswith(".py") or Path(file).is_relative_to(Path(code.found_in).resolve())


def _remember(code: NamedCode, content: str | None, *, write: bool) -> None:
    """Keep a dotted path and its file.

    Args:
        code: the dotted path.
        content: the hash of the file, without which it is unknown; None for code of the user's own, which may change.
        write: see `remember_own`.
    """
    file = code.file
    if file is None:
        return
    _here[code.name, file] = content
    if not write or _recorded(code.name, file) is None:
        return
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(_entry(code.name, file), {"name": code.name, "file": file, "sha256": content, "since": since})
    except OSError as error:
        log.warning(
            "%s: the use of %s is not recorded (%s), so later commands ask about it; set XDG_STATE_HOME to a folder"
            " that you can write to",
            record_folder(),
            code.name,
            error.strerror,
        )


def _recorded(name: str, file: str) -> str | None:
    """The hash of the content in the record, "none" if there is no entry; None for code of the user's own."""
    try:
        entry = json.loads(_entry(name, file).read_bytes())
    except (OSError, ValueError):
        return _NO_ENTRY
    if not isinstance(entry, dict) or (entry.get("name"), entry.get("file")) != (name, file):
        return _NO_ENTRY
    content = entry.get("sha256", _NO_ENTRY)
    return None if content is None else str(content)


def _entry(name: str, file: str) -> Path:
    return record_folder() / f"{hashlib.sha256(json.dumps([name, file]).encode()).hexdigest()[:32]}.json"


def _content(code: NamedCode) -> str:
    """The hash of the files that are imported; a file that cannot be read, such as a built-in module, is empty."""
    found = hashlib.sha256()
    for file in code.files:
        try:
            found.update(hashlib.sha256(Path(file).read_bytes()).digest())
        except OSError:
            found.update(b"\0")
    return found.hexdigest()
