"""Checkpoints: written whole or not at all, read back before they are trusted."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from fusionseg.errors import UserError
from fusionseg.files import whole_file

log = logging.getLogger("fusionseg")
_NAME = re.compile(r"step_(\d{8})\.pt")


class Checkpoints:
    """The `checkpoints/` folder of a run: step_00000500.pt ..., last.pt, best.pt."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[tuple[int, Path]]:
        """(step, file) of the numbered checkpoints, newest first."""
        found = [
            (int(match[1]), path) for path in self.folder.glob("step_*.pt") if (match := _NAME.fullmatch(path.name))
        ]
        return sorted(found, reverse=True)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a numbered checkpoint, point last.pt at it, and drop those beyond `keep`."""
        path = self.folder / f"step_{step:08d}.pt"
        _write(path, state)
        with whole_file(self.folder / "last.pt") as temporary:
            try:
                os.link(path, temporary)
            except OSError:  # a file system without hard links
                temporary.write_bytes(path.read_bytes())
        for _, old in self.steps()[self.keep :]:
            old.unlink()
        return path

    def save_best(self, state: dict[str, Any]) -> None:
        """Write best.pt: weights and what is needed to use them."""
        _write(self.folder / "best.pt", state)

    def newest_intact(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that can be read whole; damaged ones are passed over with a warning.

        Raises:
            UserError: there are checkpoints and none is intact.
        """
        broken = []
        for _, path in self.steps():
            try:
                return path, read_checkpoint(path)
            except UserError as error:
                broken.append(path.name)
                log.warning("%s; it is passed over", error)
        if broken:
            raise UserError(
                f"{self.folder}: none of the checkpoints is intact ({', '.join(broken)}): delete the folder to start"
                " again, or give the run another name"
            )
        return None


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
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such checkpoint") from None
    except Exception as error:  # zipfile, pickle and torch each raise their own
        raise UserError(f"{path}: damaged checkpoint ({type(error).__name__}: {str(error).splitlines()[0]})") from None
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
