"""Links in a run folder: a run writes no file through a link, and publishes none that lies elsewhere.

A run folder from elsewhere may hold a link in the place of each of its files. Without this check, a training would
append its records to the target, and a report would show it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fusionseg.runs.paths import (
    CARD,
    CLAIM,
    EVALUATION,
    GPU_TABLE,
    POSTPROCESSING,
    REPORT,
    RunPaths,
    is_run_folder,
    run_of_weights,
)
from fusionseg.utils.errors import UserError, first_of
from fusionseg.utils.locks.owner import OWNER

_DEPTH = 3
"""Levels of folders between a run folder and its deepest file: evaluation/masks/case.nii.gz."""


def refuse_links(*runs: Path) -> None:
    """Refuse links of run folders that lead out of them. Call it before a folder is written or published.

    Links that stay in the folder are accepted, and so are:

    - checkpoints that are links: they are read as tensors alone, and a new checkpoint replaces the link;
    - folders that are links, as `checkpoints` on a larger disk, unless their target belongs to another run, whose
      files a training or an evaluation would replace;
    - entries that are not of this program, such as the folder of a tracker.

    Args:
        runs: run folders, or their checkpoint files; or folders with the evaluations of an archive. They need not
            exist.

    Raises:
        UserError: with all such links.
    """
    if problems := [problem for run in runs for problem in _problems(run_of_weights(run))]:
        raise UserError(first_of(problems))


def _problems(run: Path) -> Iterator[str]:
    root = run.resolve()
    for link in _own_links(root):
        target = Path(os.path.realpath(link))
        if target.is_relative_to(root):
            continue
        shown = run / link.relative_to(root)
        if not target.is_dir():
            yield (
                f"{shown}: is a link to {target}, outside of the run folder; put a copy of the file in its place, or"
                " remove the link"
            )
        elif any(_holds_run(folder) for folder in (target, *list(target.parents)[:_DEPTH])):
            yield f"{shown}: is a link to {target}, which belongs to another run; remove the link, or name that run"


def _own_links(root: Path) -> Iterator[Path]:
    """The links among the files and folders that a run or its evaluations may have, but for checkpoints."""
    paths = RunPaths(root)
    files = {path.name for path in paths.files} | {OWNER, REPORT, POSTPROCESSING, CARD, CLAIM}
    folders = {paths.checkpoints.name, paths.pictures.name, paths.profile.name, paths.hangs.name}
    for entry in _entries(root):
        if entry.is_symlink():
            if entry.name in files | folders or entry.name.startswith((EVALUATION, Path(GPU_TABLE).stem)):
                yield Path(entry.path)
        elif entry.name in folders or entry.name.startswith(EVALUATION):
            yield from (link for link in _links_below(entry.path) if not _is_checkpoint(link, paths))


def _holds_run(folder: Path) -> bool:
    """Tell whether a run was trained in a folder. A configuration alone may lie in any folder of a user."""
    return is_run_folder(folder) and RunPaths(folder).metrics.is_file()


def _is_checkpoint(path: Path, paths: RunPaths) -> bool:
    return path.parent == paths.checkpoints and path.suffix == ".pt"


def _links_below(folder: str) -> Iterator[Path]:
    for entry in _entries(folder):
        if entry.is_symlink():
            yield Path(entry.path)
        elif entry.is_dir(follow_symlinks=False):
            yield from _links_below(entry.path)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name; none if it cannot be listed, which another check reports."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []
