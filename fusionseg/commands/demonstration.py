"""The demonstration: a run without a configuration of the user's own, on synthetic data.

The data set lies in the user's cache folder. The first demonstration makes it, every later one uses it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusionseg.config.shipped.lookup import CONFIG
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writable_folder
from fusionseg.utils.locks.folder_lock import FolderLock, HeldError
from fusionseg.utils.logs import log

if TYPE_CHECKING:
    from fusionseg.config import RunConfig

CASES, SIZE, SEED = 20, 96, 0
"""The synthetic data set: the number of cases, voxels per axis, and the seed."""


@dataclass(frozen=True)
class Demonstration:
    """A training that needs no files of the user's."""

    config: str
    """Name of the shipped configuration."""
    does: str
    """The rest of a sentence about the demonstration, such as "trains a small network to ..."."""
    own_config: str
    """Name of the shipped configuration that the message proposes for a first run on own data."""

    def open(self, overrides: Sequence[str]) -> tuple[str, Path | None]:
        """Find the configuration and the data.

        Args:
            overrides: `key.path=value` words of the command line.

        Returns:
            The configuration file, and the folder of the synthetic data set (None if the overrides name a data set).

        Raises:
            UserError: no folder for the data can be written.
        """
        file = str(CONFIG.shipped(self.config))
        if any(text.partition("=")[0].strip() in ("data.root", "data") for text in overrides):
            return file, None
        return file, data_folder()

    def data_maker(self, root: Path) -> Callable[[], None]:
        """The function that makes the synthetic data set, if it is not there yet."""
        return lambda: make_data(root)

    def introduce(self, config: RunConfig, program: str, *, own_data: bool) -> None:
        """Log in three lines what the demonstration does, what it writes, and how to train on own data.

        Args:
            config: the configuration of the run.
            program: the command that was started, such as "fusionseg train".
            own_data: whether the command line names a data set.
        """
        data = "" if own_data else f" ({CASES} volumes of {SIZE}^3 voxels, {data_state(Path(config.data.root or ''))})"
        log.info("demonstration (no --config): %s: %d steps", self.does, config.train.steps)
        log.info("data: %s%s; run folder: %s", config.data.root, data, Path(config.output) / config.name)
        log.info("own data: %s --config %s data.root=/path/to/dataset", program, self.own_config)


def data_folder() -> Path:
    """The folder of the synthetic data set: in the user's cache folder, or in the temporary folder.

    The temporary folder is used if the cache folder cannot be written.

    Raises:
        UserError: neither can be written.
    """
    problems: list[str] = []
    temporary = Path(tempfile.gettempdir()) / f"fusionseg-{os.getuid()}"
    for base in (_user_cache(), temporary):
        root = base / f"synth_{CASES}x{SIZE}_seed{SEED}"
        # All users of the machine can make folders in the temporary folder.
        if base == temporary and os.path.lexists(base) and base.lstat().st_uid != os.getuid():
            problems.append(f"demonstration: {base}: belongs to another user")
            continue
        if is_complete(root):
            return root
        try:
            writable_folder(base, "demonstration")
        except UserError as error:
            problems += error.problems
            continue
        if problems:
            log.warning("%s; the data are made in %s (XDG_CACHE_HOME chooses another cache folder)", problems[0], base)
        return root
    raise UserError([*problems, "set XDG_CACHE_HOME to a folder that can be written, or name a data set by data.root="])


def _user_cache() -> Path:
    """`$XDG_CACHE_HOME/fusionseg`, by default `~/.cache/fusionseg` (XDG Base Directory Specification)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "fusionseg"


def is_complete(root: Path) -> bool:
    """Tell whether a folder holds the synthetic data set with all its volumes."""
    volumes = [len(list((root / part).glob("synth_*.nii.gz"))) for part in ("imagesTr", "labelsTr")]
    return (root / "dataset.json").is_file() and volumes == [CASES, CASES]


def data_state(root: Path) -> str:
    """Describe for the message whether the data set exists already."""
    return "there already" if is_complete(root) else "made now"


def make_data(root: Path) -> None:
    """Make the synthetic data set, unless it is complete. One process makes it, others wait for that process.

    If a call is interrupted, the next one completes the data set: `dataset.json` is written last.

    Args:
        root: the folder of the data set.

    Raises:
        UserError: the folder cannot be written, or it holds something else.
        WriteError: the disk is full.
    """
    if is_complete(root):
        return
    from fusionseg.data.synthetic.dataset import write_dataset
    from fusionseg.observability.progress import counting_progress

    writable_folder(root.parent, "demonstration")
    root.parent.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(root.parent)
    _acquire(lock, root)
    try:
        with counting_progress("making the synthetic data") as progress:
            write_dataset(root, cases=CASES, size=SIZE, seed=SEED, progress=progress)
    finally:
        lock.release()


def _acquire(lock: FolderLock, root: Path) -> None:
    """Wait for the lock, with one message."""
    is_waiting = False
    while True:
        try:
            lock.acquire()
            return
        except HeldError:
            if not is_waiting:
                log.info("%s: another process makes the data: waiting for it", root)
                is_waiting = True
            time.sleep(0.5)
