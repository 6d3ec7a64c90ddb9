"""The list of what is shipped with the package, and copies of it to start from."""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from fusionseg.config.shipped.lookup import KINDS, RESOURCES
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import whole_file, writable_folder

# A shipped file refers to others by their paths, `base.yaml` or `[../demo.yaml]`; a copy refers to them by their names.
_REFERENCES = re.compile(r"^(?:extends|base|after): .*$", re.MULTILINE)
_PATH = re.compile(r"(?:\.\./)?([\w-]+)\.yaml")


def shipped_scripts() -> dict[str, Path]:
    """Launch scripts, those for SLURM, and the example of a manifest, by the name under which they are listed."""
    launch, slurm = RESOURCES / "launch", RESOURCES / "slurm"
    files = sorted([*launch.glob("*.sh"), *launch.glob("*.yaml"), *slurm.glob("*.sbatch")])
    devcluster = RESOURCES / "slurm/devcluster"  # "devcluster" is its cluster profile
    return {path.name: path for path in files} | {"slurm/devcluster": devcluster}


def description(path: Path) -> str:
    """The first sentence of the comment at the top of a file; empty if there is none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines and lines[0].startswith("#!"):
        del lines[0]
    comment: list[str] = []
    for line in lines:
        if not line.startswith("# ") or line.startswith("#  "):
            break
        comment.append(line[2:].strip())
    # A full stop after a single letter is an initial.
    return re.split(r"(?<=\w\w)\.(?= |$)|(?<=[)\"`])\.(?= |$)|(?<=\?) ", " ".join(comment), maxsplit=1)[0]


def copy_shipped(name: str, folder: Path) -> Path:
    """Write a copy of a shipped file into a folder, and return the path of the copy.

    The copy of a configuration extends the same shipped configuration as the original, by its name.

    Args:
        name: a configuration, a sweep, a cluster profile ("demo", "table2", "local") or a script ("one_node.sh").
        folder: the folder; it is made if it does not exist.

    Raises:
        UserError: there is no such file; the copy would replace a file; or the folder cannot be written.
    """
    files = _all_files()
    source = files.get(name) or files.get(name.removesuffix(".yaml"))
    if source is None:
        near = difflib.get_close_matches(name, files, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"{name}: there is no shipped file of this name; {hint}The list: fusionseg configs")
    target = folder / source.name
    if target.exists() or target.is_symlink():
        raise UserError(f"{target}: exists already, and is not replaced: choose another folder, or move it away")
    writable_folder(folder, "fusionseg configs copy")
    with whole_file(target) as temporary:
        if source.suffix == ".yaml":
            text = source.read_text(encoding="utf-8")
            named = _REFERENCES.sub(lambda line: _PATH.sub(r"\1", line[0]), text)
            temporary.write_text(named, encoding="utf-8")
        else:
            shutil.copy(source, temporary)  # with its permission to be executed
    return target


def _all_files() -> Mapping[str, Path]:
    return {name: kind.shipped(name) for kind in KINDS for name in kind.names()} | shipped_scripts()
