"""The folder of a run at a start: locked for this process, and checked against the configuration."""

from __future__ import annotations

import time
from pathlib import Path

from fusionseg.config import RunConfig
from fusionseg.runs.paths import RunPaths, checkpoints_of, obstacles
from fusionseg.runs.run_config import OTHER_NAME, refuse_other_config, stored_config
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import PARTIAL, user_path, writable_folder
from fusionseg.utils.folder_lock import FolderLock, HeldError

_POLL_S = 0.2


def run_folder_of(config: RunConfig) -> Path:
    """The run folder of a configuration: `<output>/<name>`."""
    return user_path(config.output) / config.name


class RunFolder:
    """The run folder of one start.

    Args:
        path: the folder, see `run_folder_of`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.paths = RunPaths(path)
        self._lock = FolderLock(self.path)

    def lock(self, patience_s: float = 0.0) -> None:
        """Keep other processes out of the folder until `unlock`, or until this process ends.

        Args:
            patience_s: seconds to wait for another process to leave.

        Raises:
            UserError: another process trains in this folder, or the folder cannot be written.
        """
        self.check_writable()
        self.path.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + patience_s
        while True:
            try:
                self._lock.acquire()
                break
            except HeldError as held:
                if time.monotonic() >= end:
                    raise UserError(
                        f"{self.path}: {held} is training in this folder: wait for it, or choose another name"
                    ) from None
                time.sleep(_POLL_S)
        # These are temporary files of a process that was killed. No process writes now, because this one has the lock.
        for leftover in (*self.path.glob(f"{PARTIAL}*"), *self.paths.checkpoints.glob(f"{PARTIAL}*")):
            leftover.unlink()

    def check_writable(self) -> None:
        """Make sure that files can be written in the folder, which need not exist yet.

        Raises:
            UserError: they cannot.
        """
        writable_folder(self.path, "output")

    def unlock(self) -> None:
        """Let other processes into the folder."""
        self._lock.release()

    def has_checkpoints(self) -> bool:
        """Tell whether the folder holds a run that a start would resume."""
        return bool(checkpoints_of(self.path))

    def check(self, config: RunConfig, elsewhere: str = OTHER_NAME) -> None:
        """Refuse to start in a folder that holds checkpoints of another configuration.

        Args:
            config: the configuration of this start.
            elsewhere: for the messages, the change of the command that chooses another folder.

        Raises:
            UserError: with the differences; or checkpoints are there, and `resume` is never; or an entry of the folder
                has the name of a file of the run, and is no file.
        """
        if problems := self._obstacles(elsewhere):
            raise UserError(problems)
        if not self.has_checkpoints():
            return
        if config.resume == "never":
            raise UserError(f"{self.path}: holds checkpoints, and resume is never: {elsewhere}, or set resume: auto")
        try:
            before, _ = stored_config(self.path)
        except UserError as error:
            raise UserError(
                f"{error.problems[0]}, and none of the checkpoints beside it holds the configuration: {elsewhere}"
            ) from None
        refuse_other_config(self.path, before, config, elsewhere)

    def _obstacles(self, elsewhere: str) -> list[str]:
        """A message for each entry that has the name of a file or a folder of the run, and is something else."""
        found = [(path, "file") for path in self.paths.files if path.exists() and not path.is_file()]
        found += [(path, "folder") for path in self.paths.folders if path.exists() and not path.is_dir()]
        found += [(path, "file") for path in obstacles(self.paths.checkpoints)]
        return [f"{path}: is no {kind}: move it away, or {elsewhere}" for path, kind in found]
