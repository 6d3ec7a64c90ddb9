"""Checkpoints: written beside the steps, whole or not at all, and read to the end before they are trusted."""

from __future__ import annotations

import copy
import logging
import os
import re
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from fusionseg.utils.errors import TrainingStopped, UserError
from fusionseg.utils.files import whole_file

log = logging.getLogger("fusionseg")
_NAME = re.compile(r"step_(\d{8,})\.pt")

# What a training needs of a checkpoint to go on. `phases_s` and what else is younger than some of them may be missing.
_STATE: dict[str, type | tuple[type, ...]] = {
    "step": int, "config": dict, "channels": list, "labels": dict, "model": dict, "train_step": dict,
    "best": (dict, type(None)), "history": list, "elapsed_s": (int, float),
}  # fmt: skip


def numbered_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of the step_*.pt in a `checkpoints/` folder, newest first; what has another name is none of them."""
    found = [(int(match[1]), path) for path in folder.glob("step_*.pt") if (match := _NAME.fullmatch(path.name))]
    return sorted(((step, path) for step, path in found if path.is_file()), reverse=True)


def obstacles(folder: Path) -> list[Path]:
    """List entries of a `checkpoints/` folder that have the name of a checkpoint and are no files."""
    named = [
        folder / "last.pt",
        folder / "best.pt",
        *(path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name)),
    ]
    return [path for path in named if path.exists() and not path.is_file()]


class Checkpoints:
    """The `checkpoints/` folder of a run: step_00000500.pt ..., last.pt, best.pt.

    Saving copies the state to the host's memory and returns; a thread writes it beside the steps that follow, one
    checkpoint at a time. Who needs it on disk calls `finish`.
    """

    def __init__(self, folder: Path, keep: int, took: Callable[[float], None] = lambda seconds: None) -> None:
        """Args:
        keep: how many numbered checkpoints.
        took: is told the seconds from a call of `save` to the disk, in the caller's thread.
        """
        self.folder = folder
        self.keep = keep
        self._told = took
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")  # Python waits for it when it ends
        self._writing: Future[float] | None = None

    def steps(self) -> list[tuple[int, Path]]:
        """(step, file) of the numbered checkpoints, newest first."""
        return numbered_checkpoints(self.folder)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a numbered checkpoint, point last.pt at it, and drop those beyond `keep`.

        Raises:
            TrainingStopped: the one before could not be written.
        """
        self._begin(self._write_numbered, step, state)

    def save_best(self, state: dict[str, Any]) -> None:
        """Save best.pt: weights and what is needed to use them.

        Raises:
            TrainingStopped: the checkpoint before could not be written.
        """
        self._begin(_write, self.folder / "best.pt", state)

    def finish(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            TrainingStopped: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            self._told(writing.result())
        except (OSError, RuntimeError) as error:  # torch turns what the system says into a RuntimeError
            reason = str(error).partition("\n")[0]
            raise TrainingStopped(
                f"{self.folder}: a checkpoint could not be written ({reason}): see whether there is space, and start"
                f" the run again: it goes on from {self._newest()}"
            ) from error

    def check(self) -> None:
        """`finish` what has ended by itself; waits for nothing."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def _newest(self) -> str:
        return next((path.name for _, path in self.steps()), "its beginning")

    def _begin(self, write: Callable[..., None], *arguments: Any) -> None:
        self.finish()  # there is one copy of the state in memory at a time
        begun = time.monotonic()
        copied = on_host(arguments)

        def work() -> float:
            write(*copied)
            return time.monotonic() - begun

        self._writing = self._thread.submit(work)

    def _write_numbered(self, step: int, state: dict[str, Any]) -> None:
        path = self.folder / f"step_{step:08d}.pt"
        _write(path, state)
        with whole_file(self.folder / "last.pt") as temporary:
            try:
                os.link(path, temporary)
            except OSError:  # a file system without hard links
                temporary.write_bytes(path.read_bytes())
        for _, old in self.steps()[self.keep :]:
            old.unlink()

    def newest_intact(self, read: Callable[[Path], dict[str, Any]] | None = None) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that can be read whole; damaged and foreign ones are passed over with a warning.

        Args:
            read: from a file to what it holds; None is `read_checkpoint`.

        Raises:
            UserError: there are checkpoints and none is intact.
        """
        broken = []
        for _, path in self.steps():
            try:
                return path, (read or read_checkpoint)(path)
            except UserError as error:
                broken.append(path.name)
                log.warning("%s; it is passed over", error)
        if broken:
            raise UserError(
                f"{self.folder}: none of the checkpoints is intact ({', '.join(broken)}): delete the folder to start"
                " again, or give the run another name"
            )
        return None


def on_host(state: Any) -> Any:
    """A copy of nested dictionaries, lists and tuples, with the tensors copied to the host's memory."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        copied = copy.copy(state)  # keeps what a network's state_dict has as an attribute: the versions of its modules
        copied.update((key, on_host(value)) for key, value in state.items())
        return copied
    if isinstance(state, (list, tuple)):
        return type(state)(on_host(value) for value in state)
    return state


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to its last byte, by weights_only: it may come from anywhere.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not look at the checksums
        if damaged is not None:
            raise ValueError(f"checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such checkpoint") from None
    except Exception as error:  # zipfile, pickle and torch each raise their own
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: damaged checkpoint ({type(error).__name__}: {reason})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: is no checkpoint: it holds a {type(state).__name__}")
    return state


def read_training_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint that a training can go on from.

    Raises:
        UserError: it is missing or damaged, or it is another program's.
    """
    state = read_checkpoint(path)
    wrong = [name for name, kind in _STATE.items() if name not in state or not isinstance(state[name], kind)]
    if wrong:
        raise UserError(f"{path}: is no checkpoint of a fusionseg training (without a proper {', '.join(wrong)})")
    return state


def find_weights(run: Path, which: str = "best") -> Path:
    """The checkpoint that a run folder stands for (`best`, else its last; or `last`), or the file itself."""
    if run.is_file():
        return run
    names = ("best.pt", "last.pt") if which == "best" else ("last.pt",)
    for name in names:
        if (run / "checkpoints" / name).is_file():
            return run / "checkpoints" / name
    raise UserError(
        f"{run}: holds no {' or '.join(f'checkpoints/{name}' for name in names)}: give the folder of a run that has"
        " trained, or a checkpoint file"
    )


def _write(path: Path, state: dict[str, Any]) -> None:
    with whole_file(path) as temporary:
        torch.save(state, temporary)
