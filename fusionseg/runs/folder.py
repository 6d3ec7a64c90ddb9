"""A run's folder: what is written there, and whether a configuration may go on in it."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fusionseg
from fusionseg.config import RunConfig, differences, dump_config, validate
from fusionseg.config.loading import lay_over
from fusionseg.config.override import parse_override
from fusionseg.runs.checkpoints import numbered_checkpoints, obstacles
from fusionseg.runs.records import last_records, read_records, read_regular
from fusionseg.runs.split import Split
from fusionseg.runs.stored_config import resolved, stored_config
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import user_path, writable_folder, write_json, write_text
from fusionseg.utils.folder_lock import FolderLock, HeldError

PACKAGES = ("torch", "monai", "numpy", "nibabel", "pydantic", "nvtx")

# What may change between two starts of one run: none of it is part of the mathematics.
RESUME_FREE_KEYS = (
    ("name",), ("output",), ("resume",), ("init_from_seen",), ("device",), ("log",), ("profile",), ("cache", "device"),
    ("cache", "memory_fraction"), ("checkpoint",), ("data", "root"), ("data", "prepared"), ("data", "workers"),
    ("train", "threads"), ("train", "checkpoint_activations"), ("validate", "window_batch"),
)  # fmt: skip


class RunFolder:
    """`<output>/<name>` and its files."""

    def __init__(self, config: RunConfig) -> None:
        self.path = user_path(config.output) / config.name
        self.config_file = self.path / "config.yaml"
        self.split_file = self.path / "split.json"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "log.txt"
        self.checkpoints = self.path / "checkpoints"
        self.pictures = self.path / "pictures"
        self._lock = FolderLock(self.path)

    def lock(self, patience_s: float = 0.0) -> None:
        """Keep a second process out of the folder for as long as this one lives.

        Args:
            patience_s: how long to wait for the other one to leave.

        Raises:
            UserError: a process is training here already, or the folder cannot be written.
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
                time.sleep(0.2)
        for leftover in (*self.path.glob(".partial-*"), *self.checkpoints.glob(".partial-*")):
            leftover.unlink()  # of a process that was killed while it wrote: the lock says that none is writing

    def check_writable(self) -> None:
        """Make sure that files can be written in the folder, which need not exist yet.

        Raises:
            UserError: they cannot.
        """
        writable_folder(self.path, "output")

    def unlock(self) -> None:
        """Let others into the folder."""
        self._lock.release()

    def has_checkpoints(self) -> bool:
        """Whether a run has begun here that a start would resume."""
        return bool(numbered_checkpoints(self.checkpoints))

    def check(self, config: RunConfig) -> None:
        """Refuse to go on in a folder that holds checkpoints of another configuration.

        Raises:
            UserError: with the differences, or because `resume: never` was asked for.
        """
        if wrong := self._obstacles():
            raise UserError([f"{path}: is {what}: move it away, or choose another name" for path, what in wrong])
        if not self.has_checkpoints():
            return
        if config.resume == "never":
            raise UserError(
                f"{self.path}: holds checkpoints, and resume is never: choose another name, or resume: auto"
            )
        try:
            before, _ = stored_config(self.path)
        except UserError as error:
            raise UserError(
                f"{error.problems[0]}, and none of the checkpoints beside it says what was trained: choose another name"
            ) from None
        refuse_other_config(self.path, before, config)

    def _obstacles(self) -> list[tuple[Path, str]]:
        """List entries that have the name of a file or a folder of the run, and are something else."""
        files = ("config.yaml", "environment.json", "split.json", "metrics.jsonl", "jobs.jsonl", "log.txt", ".lock")
        found = [(path, "no file") for name in files if (path := self.path / name).exists() and not path.is_file()]
        folders = [self.path, self.checkpoints, self.pictures]
        found += [(path, "no folder") for path in folders if path.exists() and not path.is_dir()]
        return found + [(path, "no file") for path in obstacles(self.checkpoints)]

    def write_config(self, config: RunConfig) -> None:
        write_text(self.config_file, dump_config(config))

    def write_split(self, split: Split) -> None:
        """split.json: what the run trains and validates on, by name and content. A run that goes on has it already."""
        if not (self.split_file.is_file() and self.has_checkpoints()):
            write_json(self.split_file, split.to_json())

    def write_environment(self, ranks: list[dict[str, Any]], parameters: int) -> None:
        """environment.json: what this start of the run ran on, and the number of the network's parameters."""
        write_json(
            self.path / "environment.json",
            {
                "fusionseg": fusionseg.__version__,
                "commit": _commit(),
                "python": platform.python_version(),
                "packages": {name: _version(name) for name in PACKAGES},
                "cuda": torch.version.cuda,
                "command": sys.argv,
                "parameters": parameters,
                "world_size": len(ranks),
                "ranks": ranks,
            },
        )

    def has_end(self) -> bool:
        """Whether the last record says that the run has come to its end."""
        records = last_records(self.metrics)
        last = records.popitem()[1] if records else {"kind": ""}
        return bool(last["kind"] == "end" and last["status"] in ("completed", "plateau"))

    def rewind_metrics(self, step: int, *, validated: int) -> None:
        """Drop the records of which the checkpoint knows nothing: they will be written again.

        Args:
            step: the checkpoint's.
            validated: the last step whose validation is in the checkpoint; it may have been saved before its own.
        """
        if not self.metrics.exists():
            return
        try:
            read_regular(self.metrics)
        except OSError as error:  # what cannot be read is not to be replaced by nothing
            raise UserError(
                f"{self.metrics}: cannot be read ({error.strerror}): mend that, or choose another name"
            ) from None
        kept = [
            record
            for record in read_records(self.metrics)
            if record["step"] <= (validated if record["kind"] == "val" else step) and record["kind"] != "end"
        ]
        write_text(self.metrics, "".join(f"{json.dumps(record)}\n" for record in kept))


def load_run_config(run: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The resolved configuration of an existing run folder."""
    if not (run / "config.yaml").exists():
        raise UserError(f"{run}: is no run folder (there is no config.yaml): give the folder that training wrote")
    return validate(*lay_over(*stored_config(run), [parse_override(text, RunConfig) for text in overrides]))


def refuse_other_config(folder: Path, before: dict[str, Any], config: RunConfig) -> None:
    """Refuse to go on with what another configuration trained.

    Args:
        before: the plain configuration of what is there.

    Raises:
        UserError: with the differences.
    """
    changed = differences(resume_relevant(resolved(before)), resume_relevant(config.to_dict()))
    if changed:
        raise UserError(
            f"{folder}: holds a run of a different configuration: choose another name, or go back to the old"
            " values:\n  " + "\n  ".join(changed)
        )


def resume_relevant(plain: dict[str, Any]) -> dict[str, Any]:
    """The part of a plain configuration that the results depend on."""
    kept: dict[str, Any] = json.loads(json.dumps(plain, default=str))
    for path in RESUME_FREE_KEYS:
        section: Any = kept
        for key in path[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict):  # a file that somebody has edited may hold anything
            section.pop(path[-1], None)
    data = kept.get("data")
    for source in (data.get("also") or []) if isinstance(data, dict) else []:
        if isinstance(source, dict):
            source.pop("root", None)
            source.pop("prepared", None)
    return kept


def config_hash(config: RunConfig) -> str:
    """A short hash of `resume_relevant`."""
    return hashlib.sha256(json.dumps(resume_relevant(config.to_dict()), sort_keys=True).encode()).hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree this package runs from, marked if it has changes."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
