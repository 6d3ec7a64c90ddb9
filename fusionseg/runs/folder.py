"""The folder of a run at a start: locked for this process, and checked against the configuration."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from fusionseg.config import RunConfig
from fusionseg.runs.continuation.branch import refuse_other_origin, unfinished_branch
from fusionseg.runs.continuation.changes import BRANCH, EXTEND, PLAIN, Continuation
from fusionseg.runs.continuation.extension import refuse_unfit_extension
from fusionseg.runs.divided.folders import remove_partial
from fusionseg.runs.paths import RunPaths, checkpoints_of, obstacles
from fusionseg.runs.run_config import OTHER_NAME, refuse_other_config, stored_config
from fusionseg.runs.trust.links import refuse_links
from fusionseg.utils.errors import TrainingStopped, UserError
from fusionseg.utils.files import PARTIAL, user_path, writable_folder
from fusionseg.utils.locks.folder_lock import FolderLock, HeldError
from fusionseg.utils.locks.owner import OWNER

log = logging.getLogger("fusionseg")

PREDECESSOR_S = 60.0
"""Seconds that a restarted run waits until the process before it has left the folder."""
_POLL_S = 0.2


def patience_of_start(environ: Mapping[str, str]) -> float:
    """Seconds to wait for an earlier process of the same run to leave its folder.

    A scheduler or torchrun that starts a run again may be faster than the end of the process before. A user who starts
    a run twice is refused at once.

    Args:
        environ: the environment, such as `os.environ`.
    """
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    again = any(environ.get(name, "0") not in ("", "0") for name in counts)
    # A torchrun of several nodes does not count the restarts that other nodes have caused.
    several = environ.get("GROUP_WORLD_SIZE", "1") not in ("", "1")
    return PREDECESSOR_S if again or several else 0.0


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
        self.last_saved: Path | None = None
        """The last checkpoint that this start has written, or from which it has resumed."""

    def lock(self, patience_s: float = 0.0) -> None:
        """Keep other processes out of the folder until `unlock`, or until this process ends.

        Args:
            patience_s: seconds to wait for another process to leave.

        Raises:
            UserError: another process trains in this folder, the folder cannot be written, or its links lead out of it.
        """
        self.check_writable()
        refuse_links(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        if problems := self._obstacles(OTHER_NAME):  # a pipe in place of a file would be waited for
            raise UserError(problems)
        end = time.monotonic() + patience_s
        is_waiting = False
        while True:
            try:
                self._lock.acquire()
                break
            except HeldError as held:
                if time.monotonic() >= end:
                    raise UserError(
                        f"{self.path}: {held} is training in this folder: wait for it or end it, or choose another name"
                    ) from None
                if not is_waiting:
                    log.info("%s: %s is in this folder: waiting up to %.0f s for its end", self.path, held, patience_s)
                    is_waiting = True
                time.sleep(_POLL_S)
        # A process that was killed has left them. No process writes now, because this one has the lock.
        for leftover in (*self.path.glob(f"{PARTIAL}*"), *self.paths.checkpoints.glob(f"{PARTIAL}*")):
            remove_partial(leftover)

    def check_writable(self) -> None:
        """Make sure that files can be written in the folder, which need not exist yet.

        Raises:
            UserError: they cannot.
        """
        writable_folder(self.path, "output")

    def check_ours(self) -> None:
        """Make sure that the folder at this path is still the one that was locked. Call it before each file is written.

        Raises:
            TrainingStopped: it was removed, moved, replaced or taken over by another process.
        """
        loss = self._lock.loss()
        if loss is None:
            return
        if self.last_saved is None:
            last = "this start has saved no checkpoint"
        elif loss.now is None:
            last = (
                f"the last checkpoint was {self.last_saved}: restore it from a copy, or start again from the beginning"
            )
        else:
            last = f"the last checkpoint is {loss.now / self.last_saved.relative_to(self.path)}"
            if loss.now != self.path:
                last += ": move the folder back and start the run again"
        raise TrainingStopped(
            f"{self.path}: the run folder {loss.what} while the run trained. Nothing more is written there; {last}"
        )

    @property
    def is_ours(self) -> bool:
        """Whether the folder at this path is still the one that was locked, see `check_ours`."""
        return self._lock.loss() is None

    @property
    def is_taken_over(self) -> bool:
        """Whether another process has the folder that was locked. A folder that was moved or removed has none."""
        loss = self._lock.loss()
        return loss is not None and loss.now == self.path

    def unlock(self) -> None:
        """Let other processes into the folder."""
        self._lock.release()

    def has_checkpoints(self) -> bool:
        """Tell whether the folder holds a run that a start would resume."""
        return bool(checkpoints_of(self.path))

    def check(self, config: RunConfig, elsewhere: str = OTHER_NAME, continuation: Continuation = PLAIN) -> None:
        """Refuse to start in a folder that holds checkpoints of another configuration, unless a word allows it.

        Args:
            config: the configuration of this start.
            elsewhere: for the messages, the change of the command that chooses another folder.
            continuation: the word.

        Raises:
            UserError: with the differences; or checkpoints are there, and `resume` is never; or an entry of the folder
                has the name of a file of the run, and is no file; or the word does not fit the folder.
        """
        if problems := self._obstacles(elsewhere):
            raise UserError(problems)
        if not self.has_checkpoints():
            if continuation.extend:
                raise UserError(
                    f"{self.path}: holds no checkpoint, so there is no run to extend: correct output and name, or leave"
                    f" {EXTEND} out to start it"
                )
            if continuation.branch is None and (origin := unfinished_branch(self.path)) is not None:
                raise UserError(
                    f"{self.path}: is a branch of {origin} that lacks its checkpoint: add {BRANCH} {origin}, or"
                    f" {elsewhere}"
                )
            return
        if config.resume == "never":
            raise UserError(f"{self.path}: holds checkpoints, and resume is never: {elsewhere}, or set resume: auto")
        try:
            before, _ = stored_config(self.path)
        except UserError as error:
            raise UserError(
                f"{error.problems[0]}, and none of the checkpoints beside it holds the configuration: {elsewhere}"
            ) from None
        if continuation.branch is not None:
            refuse_other_origin(self.path, continuation.branch)
        if continuation.extend:
            refuse_unfit_extension(self.path, before, config)
        else:
            refuse_other_config(self.path, before, config, elsewhere)

    def _obstacles(self, elsewhere: str) -> list[str]:
        """A message for each entry that has the name of a file or a folder of the run, and is something else."""
        files = (*self.paths.files, self.path / OWNER)
        found = [(path, "file") for path in files if path.exists() and not path.is_file()]
        found += [(path, "folder") for path in self.paths.folders if path.exists() and not path.is_dir()]
        found += [(path, "file") for path in obstacles(self.paths.checkpoints)]
        return [f"{path}: is no {kind}: move it away, or {elsewhere}" for path, kind in found]
