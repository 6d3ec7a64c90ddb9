"""Readers of checkpoints and archives. Every byte of a file is verified before its content is used."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fusionseg.runs.archive.layout import is_archive
from fusionseg.runs.archive.reader import count_networks, read_config, read_network
from fusionseg.runs.paths import BEST, CHECKPOINTS, LAST, RunPaths, is_divided, numbered_checkpoints
from fusionseg.runs.trust.consent import NotAllowedError
from fusionseg.utils.errors import UserError

log = logging.getLogger("fusionseg")

_MISSING = object()
AVERAGED = "averaged"
"""The key of a checkpoint's averaged weights (`train.ema`), by name; the state dict under "model" has those of the
training. best.pt has no such key: its "model" is averaged already."""

# A training needs these entries of a checkpoint to resume. Newer entries, such as `phases_s`, may be missing.
_TRAINING_STATE: dict[str, type | tuple[type, ...]] = {
    "step": int, "config": dict, "channels": list, "labels": dict, "model": dict, "train_step": dict,
    "best": (dict, type(None)), "history": list, "elapsed_s": (int, float),
}  # fmt: skip


def read_checkpoint(path: Path, network: int | None = None) -> dict[str, Any]:
    """Load a checkpoint on the CPU and verify its checksums. It may come from anywhere: no code in it is run.

    Args:
        path: the checkpoint, a file or a folder; or an archive.
        network: of an archive with several; None for the only one.

    Raises:
        UserError: the file is missing or damaged, or holds no dictionary; or the archive cannot be used.
    """
    if is_archive(path):
        return read_network(path, network)
    state = _read_folder(path) if is_divided(path) else _read_file(path)
    if not isinstance(state, dict):
        raise UserError(f"{path}: is no checkpoint (expected a dictionary, got a {type(state).__name__})")
    return state


def _read_file(path: Path) -> Any:
    import torch  # takes seconds to import, and most readers of a run folder need no checkpoint

    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not verify the checksums
        if damaged is not None:
            raise ValueError(f"checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such checkpoint") from None
    except Exception as error:  # zipfile, pickle and torch each raise exceptions of their own
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: damaged checkpoint ({type(error).__name__}: {reason})") from None


def _read_folder(path: Path) -> Any:
    from fusionseg.runs.divided.reader import read_divided  # it imports torch too

    return read_divided(path)


def peek_config(path: Path) -> dict[str, Any] | None:
    """Read the configuration in a checkpoint without its tensors, and without verifying the file.

    Returns:
        The plain configuration; None if the file cannot be read, which `read_checkpoint` reports.
    """
    if is_archive(path):
        try:
            return read_config(path)
        except NotAllowedError:
            raise
        except UserError:
            return None
    if is_divided(path):
        from fusionseg.runs.divided.reader import read_divided_config

        return read_divided_config(path)
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # `read_checkpoint` says what is wrong with the file
        return None
    config = state.get("config") if isinstance(state, dict) else None
    return config if isinstance(config, dict) else None


def networks_in(path: Path) -> list[int | None]:
    """The networks of a file that `find_weights` has found, as arguments for `read_checkpoint`.

    Raises:
        UserError: it is an archive that cannot be used.
    """
    return list(range(count_networks(path))) if is_archive(path) else [None]


def read_start(path: Path) -> Any:
    """Read the weights that a training starts from: a checkpoint of any program, or an archive.

    Raises:
        UserError: the file cannot be read, or the archive cannot be used.
    """
    from fusionseg.models.weights.loading import read_file

    content = read_checkpoint(path) if is_archive(path) or is_divided(path) else read_file(path)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        return {**content, "model": used_weights(content)}
    return content


def used_weights(content: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of a checkpoint's network, with the averaged weights where the checkpoint has them.

    Args:
        content: of the checkpoint.
    """
    averaged = content.get(AVERAGED)
    return {**content["model"], **(averaged if isinstance(averaged, dict) else {})}


def read_training_state(path: Path) -> dict[str, Any]:
    """Load a checkpoint that a training can resume from; see `read_checkpoint`.

    Raises:
        UserError: the file is missing or damaged, or comes from another program.
    """
    state = read_checkpoint(path)
    wrong = [name for name, kind in _TRAINING_STATE.items() if not isinstance(state.get(name, _MISSING), kind)]
    if wrong:
        raise UserError(
            f"{path}: is no checkpoint of a fusionseg training ({', '.join(wrong)}: missing or of another type)"
        )
    return state


def newest_intact(
    folder: Path, read: Callable[[Path], dict[str, Any]] = read_checkpoint, at_most: int | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """Load the newest numbered checkpoint that is intact. Those that are not are skipped with a warning.

    Args:
        folder: the `checkpoints/` folder.
        read: loads a file; raises UserError where it is damaged.
        at_most: the highest step; None takes them all.

    Returns:
        The file and its content; None if there is no checkpoint, or with `at_most` none that is intact: a newer one may
        be.

    Raises:
        UserError: there are checkpoints, and none is intact; not with `at_most`.
    """
    broken = []
    for step, path in numbered_checkpoints(folder):
        if at_most is not None and step > at_most:
            continue
        try:
            return path, read(path)
        except UserError as error:
            broken.append(path.name)
            log.warning("%s; it is skipped", error)
    if broken and at_most is None:
        raise UserError(
            f"{folder}: none of the checkpoints is intact ({', '.join(broken)}): delete the folder to start again, or"
            " give the run another name"
        )
    return None


def find_weights(run: Path, which: str = "best") -> Path:
    """Find the checkpoint that a run folder stands for.

    Args:
        run: the run folder; or a checkpoint or an archive, which is returned as it is.
        which: "last" takes last.pt; "best" takes best.pt, or last.pt where there is none. On a file system without
            links there is no last.pt beside divided checkpoints: then it is the newest of them.

    Raises:
        UserError: the folder holds no such checkpoint.
    """
    if run.is_file() or is_divided(run) or is_archive(run):  # `read_checkpoint` names an archive that is missing
        return run
    names = (BEST, LAST) if which == "best" else (LAST,)
    for name in names:
        path = RunPaths(run).checkpoints / name
        if path.is_file() or is_divided(path):
            return path
    for _, newest in numbered_checkpoints(RunPaths(run).checkpoints)[:1]:
        if is_divided(newest):
            return newest
    raise UserError(
        f"{run}: holds no {' or '.join(f'{CHECKPOINTS}/{name}' for name in names)}: give the folder of a run that has"
        " trained, a checkpoint file or an archive"
    )
