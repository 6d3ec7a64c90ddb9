"""Lookup of configurations, sweeps and cluster profiles, by path or by the name of one that is shipped.

A text is a path if a file has this path. Otherwise a text without a folder and without a suffix is a name: that of
`NAME.yaml` in the current folder (for `extends` and `base`: in the folder of the file that holds them) or, if there is
none, of a file that is shipped with the package.

The shipped files are those of `configs/`, `slurm/` and `launch/` in the repository. `fusionseg/resources/` has links to
these folders, and a wheel has copies of the files in their place.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from fusionseg.utils.errors import UserError

RESOURCES = Path(__file__).parents[2] / "resources"


@dataclass(frozen=True)
class Kind:
    """A kind of YAML file that is found by name."""

    noun: str
    folder: str
    """Folder of the shipped files, relative to `RESOURCES`."""
    use: str
    """A command with such a file, for messages; {} stands for the name."""

    def names(self) -> list[str]:
        """The names of the shipped files, sorted."""
        return sorted(path.stem for path in (RESOURCES / self.folder).glob("*.yaml"))

    def shipped(self, name: str) -> Path:
        """The shipped file of a name; it need not exist."""
        return RESOURCES / self.folder / f"{name}.yaml"


CONFIG = Kind("configuration", "configs", "python -m fusionseg.train --config {}")
SWEEP = Kind("sweep", "configs/sweeps", "fusionseg submit {} --cluster local")
CLUSTER = Kind("cluster profile", "slurm/clusters", "fusionseg submit SWEEP --cluster {}")
KINDS = (CONFIG, SWEEP, CLUSTER)


def find_file(kind: Kind, given: str | Path, folder: Path | None = None, asking: Path | None = None) -> Path:
    """Find the file that a path or a name stands for.

    Args:
        kind: the kind of file that is expected.
        given: a path, or a name such as "hippocampus_unet".
        folder: paths and names are relative to this folder; None is the current one.
        asking: the file that refers to the path or name. It is not found by its own name, so that `my/demo.yaml` may
            extend the shipped `demo`.

    Raises:
        UserError: there is no such file; the message has the nearest names.
    """
    path = Path(given) if folder is None else folder / given
    if _is_file(path):
        return path
    text = str(given)
    if is_name(text):
        local = path.with_name(f"{text}.yaml")
        if _is_file(local) and not (asking is not None and local.resolve() == asking.resolve()):
            return local
        if kind.shipped(text).is_file():
            return kind.shipped(text)
    raise UserError(f"{path}: {_missing(kind, text, path)}")


def is_name(text: str) -> bool:
    """Tell whether a text has the form of a name: no folder and no suffix."""
    return re.fullmatch(r"[A-Za-z0-9_-]+", text) is not None


def shown_path(path: Path) -> str:
    """A path for messages: a shipped file is "shipped configs/base.yaml", wherever the package is installed."""
    if path.is_relative_to(RESOURCES):
        return f"shipped {path.relative_to(RESOURCES)}"
    return str(path)


def nearby(path: Path) -> str:
    """The YAML files of the folder in which a file is missing, as the end of an error message."""
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent})"
    names = sorted(entry.name for entry in path.parent.glob("*.yaml"))
    folder = "this folder" if path.parent == Path() else shown_path(path.parent)
    return f"; {folder} holds {', '.join(names)}" if names else ""


def _is_file(path: Path) -> bool:
    """Tell whether a path can be read as a file. A pipe, such as the shell's <(command), can be read too."""
    return os.path.exists(path) and not os.path.isdir(path)


def _missing(kind: Kind, text: str, path: Path) -> str:
    """The reason and the remedy for a file that was not found."""
    if path.is_dir():
        run = f": give the file {path / 'config.yaml'}" if (path / "config.yaml").is_file() else ""
        return f"is a folder (expected a YAML file){run or f'; the shipped ones: fusionseg configs{nearby(path)}'}"
    said = f"there is no such {kind.noun} file{nearby(path)}"
    stem = Path(text).stem
    for other in KINDS:
        if stem in other.names():
            if other is kind:  # the text is a path, or has an ending
                return f"{said}; {stem} is a shipped {kind.noun}: give its name alone, {stem}"
            return f"{said}; {stem} is a shipped {other.noun}, found by its name: {other.use.format(stem)}"
    near = difflib.get_close_matches(text, kind.names(), n=3, cutoff=0.6) if is_name(text) else []
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{said}; {hint}The shipped ones: fusionseg configs"
