"""The dotted paths in a plain configuration, and the file that each would import. Nothing is imported here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from fusionseg.config.outside import searched_first

BUILT_IN = "built-in"
"""The file of a module of the interpreter."""
_NAMES = {
    *(("data", key) for key in ("series", "labels", "classes", "regions", "ignore", "annotated", "sampling")),
    *(("data", key) for key in ("fold", "group", "stratify", "weight", "target")),
    *(("data", "also", key) for key in ("series", "group")),
    ("augment", "mirror_pairs"),
    *(("evaluate", key) for key in ("lesions", "vessels")),
}
"""Keys of names that are never imported, such as those of classes. A colon in them, as in "tumour:core", is allowed."""


@dataclass(frozen=True)
class NamedCode:
    """A text of a configuration that `config.outside.import_part` would import."""

    key: str
    name: str
    """The dotted path."""
    found_in: str | None
    """The folder in which the module was found, as the configuration beside the name says."""

    @property
    def file(self) -> str | None:
        """The last file that would be imported, or `BUILT_IN`; None if there is none."""
        files = self.files
        return files[-1] if files else None

    @cached_property
    def files(self) -> list[str]:
        """The files that would be imported, those of the parents first. The module itself may not exist.

        They are looked for once: what is shown is what is compared and recorded.
        """
        folders = [Path(self.found_in)] if self.found_in is not None else []
        folders.append(Path.cwd())
        module = self.name.partition(":")[0]
        if module.endswith(".py"):
            found = next((path for folder in folders if (path := folder / module).is_file()), None)
            if found is None:
                return []
            # As `import_part` does: Python prefers a folder of the same name beside the file.
            folders, module = [found.resolve().parent], found.stem
        if not all(part.isidentifier() for part in module.split(".")):
            return []
        with searched_first(folders):
            return _files_of_module(module)


def named_code(plain: Mapping[str, Any]) -> list[NamedCode]:
    """List the dotted paths in a plain configuration, also those in arguments of parts.

    Args:
        plain: the configuration.
    """
    return [NamedCode(".".join(key), text, found_in) for key, text, found_in in _texts(plain) if _names_code(text)]


def _names_code(text: str) -> bool:
    """Tell whether `config.outside.import_part` would import something for a text."""
    module, _, attribute = text.partition(":")
    return bool(module) and all(part.isidentifier() for part in attribute.split("."))


def _texts(
    plain: Any, at: tuple[str, ...] = (), found_in: str | None = None
) -> Iterator[tuple[tuple[str, ...], str, str | None]]:
    """Yield each text in plain values with its key, and the folder that is recorded beside it.

    A key is a text too: some sections are named by their keys.
    """
    if isinstance(plain, str):
        yield at, plain, found_in
    elif isinstance(plain, Mapping):
        for key, value in plain.items():
            yield at, str(key), _folder(value) or found_in
            if (*(name for name in at if not name.isdecimal()), str(key)) not in _NAMES:
                yield from _texts(value, (*at, str(key)), _folder(plain) or found_in)
    elif isinstance(plain, list | tuple):
        for index, value in enumerate(plain):
            yield from _texts(value, (*at, str(index)), found_in)


def _folder(plain: Any) -> str | None:
    folder = plain.get("found_in") if isinstance(plain, Mapping) else None
    return folder if isinstance(folder, str) else None


def _files_of_module(module: str) -> list[str]:
    """The files on a dotted way, as far as it exists. `importlib.util.find_spec` would import the parents."""
    found: list[str] = []
    top, *parts = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module without a description, such as __main__
        return [getattr(sys.modules.get(top), "__file__", None) or BUILT_IN]
    for part in (*parts, None):
        if spec is None:
            break
        if (file := _file_of(spec)) is not None:
            found.append(file)
        if part is None or spec.submodule_search_locations is None:
            break
        spec = _spec_in(f"{spec.name}.{part}", list(spec.submodule_search_locations))
    return found


def _spec_in(name: str, path: list[str]) -> ModuleSpec | None:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None


def _file_of(spec: ModuleSpec) -> str | None:
    if spec.origin is None:  # a folder without __init__.py: nothing in it is run
        return None
    return str(Path(spec.origin).resolve()) if spec.has_location else BUILT_IN
