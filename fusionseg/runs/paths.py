"""Names of the files in a run folder. No other module spells these names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionseg.utils.errors import UserError
from fusionseg.utils.locks.folder_lock import LOCK

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
SPLIT = "split.json"
METRICS = "metrics.jsonl"
JOBS = "jobs.jsonl"
HISTORY = "history.jsonl"
"""The starts of a run and their ends."""
TRACKERS = "trackers.json"
LOG = "log.txt"
CHECKPOINTS = "checkpoints"
PICTURES = "pictures"
PROFILE = "profile"
HANGS = "hangs"
"""Stacks of the ranks at times when no rank made progress."""
GPU_TABLE = "gpu.csv"
"""Samples of the GPUs of rank 0's node."""
REPORT = "report.html"
"""Page of a run in its folder, and of an evaluation in its folder."""
POSTPROCESSING = "postprocessing.json"
"""Post-processing of masks, chosen on the validation cases of a run."""
CARD, CLAIM = "card.md", "claim.md"
"""Model card, and checklist CLAIM."""
EVALUATION = "evaluation"
"""Beginning of the name of every evaluation's folder."""
EXPORT = "export"
"""Beginning of the name of the folder of an exported model, if no other folder is named."""

LAST, BEST = "last.pt", "best.pt"
WEIGHTS = {"last": LAST, "best": BEST}
"""File names by value of the option `--checkpoint`."""
INDEX = "index.json"
"""File of a divided checkpoint (`checkpoint.sharded`) that names all others of its folder."""
_NUMBERED = re.compile(r"step_(\d{8,})(?:\.pt|(?:\.([1-9]\d*))?)")
_PART = re.compile(r"rank_\d{5,}\.safetensors")


@dataclass(frozen=True)
class RunPaths:
    """Paths of the files in a run folder. Nothing is read or written here.

    Args:
        root: the run folder.
    """

    root: Path

    @property
    def config(self) -> Path:
        return self.root / CONFIG

    @property
    def environment(self) -> Path:
        return self.root / ENVIRONMENT

    @property
    def split(self) -> Path:
        return self.root / SPLIT

    @property
    def metrics(self) -> Path:
        return self.root / METRICS

    @property
    def jobs(self) -> Path:
        return self.root / JOBS

    @property
    def history(self) -> Path:
        return self.root / HISTORY

    @property
    def trackers(self) -> Path:
        return self.root / TRACKERS

    @property
    def log(self) -> Path:
        return self.root / LOG

    @property
    def checkpoints(self) -> Path:
        return self.root / CHECKPOINTS

    @property
    def pictures(self) -> Path:
        return self.root / PICTURES

    @property
    def profile(self) -> Path:
        return self.root / PROFILE

    def out_of_memory(self, rank: int) -> Path:
        """The state of the allocator of a rank's GPU, after an error of its memory."""
        return self.profile / f"out_of_memory_rank{rank}.pickle"

    def memory_note(self, rank: int) -> Path:
        """The message of a rank whose memory was not enough."""
        return self.profile / f"out_of_memory_rank{rank}.txt"

    def memory_notes(self) -> list[Path]:
        """The notes of all ranks that exist, see `memory_note`."""
        return sorted(self.profile.glob("out_of_memory_rank*.txt"))

    @property
    def hangs(self) -> Path:
        return self.root / HANGS

    @property
    def report(self) -> Path:
        return self.root / REPORT

    @property
    def postprocessing(self) -> Path:
        return self.root / POSTPROCESSING

    @property
    def files(self) -> tuple[Path, ...]:
        """Every entry of the run folder that is a file. Evaluations and checkpoints are not among them."""
        names = (CONFIG, ENVIRONMENT, SPLIT, METRICS, JOBS, HISTORY, TRACKERS, LOG, LOCK)
        return tuple(self.root / name for name in names)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The run folder and the folders in it that a training writes to."""
        return self.root, self.checkpoints, self.pictures


def numbered_name(step: int) -> str:
    """The file name of the checkpoint of a step: step_00000500.pt."""
    return f"{folder_name(step)}.pt"


def folder_name(step: int) -> str:
    """The name of the folder of a divided checkpoint: step_00000500."""
    return f"step_{step:08d}"


def free_folder(folder: Path, step: int) -> Path:
    """A path for a new divided checkpoint: step_00000500, or step_00000500.1 if there is a checkpoint of this step.

    A folder cannot be replaced at once as a file can. The higher number is the newer one.

    Args:
        folder: the `checkpoints/` folder.
        step: number of steps that were trained.
    """
    taken = [_sorted_by(path)[1] for saved, path in _numbered(folder) if saved == step]
    number = 1 + max(taken, default=-1)
    return folder / f"{folder_name(step)}{f'.{number}' if number else ''}"


def part_name(rank: int) -> str:
    """The name of the file of a rank in a divided checkpoint."""
    return f"rank_{rank:05d}.safetensors"


def is_part_name(name: str) -> bool:
    """Tell whether a divided checkpoint may have a file of this name."""
    return _PART.fullmatch(name) is not None


def is_divided(path: Path) -> bool:
    """Tell whether a path is a divided checkpoint, or a link to one: a folder with its name or its index."""
    return path.is_dir() and (_is_folder_name(path.resolve().name) or (path / INDEX).is_file())


def content_file(checkpoint: Path) -> Path:
    """The file whose hash stands for a whole checkpoint: of a divided one the index, which has those of the others."""
    return checkpoint / INDEX if is_divided(checkpoint) else checkpoint


def size_of(checkpoint: Path) -> int:
    """The bytes of a checkpoint.

    Raises:
        OSError: it is missing.
    """
    files = checkpoint.iterdir() if checkpoint.is_dir() else (checkpoint,)
    return sum(file.stat().st_size for file in files)


def checkpoints_of(run: Path) -> list[tuple[int, Path]]:
    """List the numbered checkpoints of a run, the newest first.

    Args:
        run: the run folder.

    Returns:
        The step and the path of each: a file, or the folder of a divided one. Other entries are ignored.
    """
    return numbered_checkpoints(RunPaths(run).checkpoints)


def last_step(run: Path) -> int:
    """The step of the newest numbered checkpoint of a run; 0 if there is none."""
    return next((step for step, _ in checkpoints_of(run)), 0)


def numbered_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """List the numbered checkpoints of a `checkpoints/` folder, the newest first; see `checkpoints_of`."""
    found = ((step, path) for step, path in _numbered(folder) if _is_checkpoint(path))
    return sorted(found, key=lambda each: _sorted_by(each[1]), reverse=True)


def obstacles(folder: Path) -> list[Path]:
    """List the entries of a `checkpoints/` folder that have the name of a checkpoint but are none."""
    named = [folder / BEST, *(path for _, path in _numbered(folder))]
    found = [path for path in named if path.exists() and not _is_checkpoint(path)]
    last = folder / LAST
    return [last, *found] if last.exists() and not (last.is_file() or last.is_symlink()) else found


def run_of_weights(weights: Path) -> Path:
    """The run folder that `init_from` names, by itself or by one of its checkpoints.

    Args:
        weights: the value of `init_from`.
    """
    is_folder = weights.parent.name == CHECKPOINTS and _is_folder_name(weights.name)
    return weights.parent.parent if weights.suffix == ".pt" or is_folder else weights


def has_weights(run: Path) -> bool:
    """Tell whether a run folder holds any checkpoint."""
    return bool(checkpoints_of(run)) or any(RunPaths(run).checkpoints.glob("*.pt"))


def is_run_folder(path: Path) -> bool:
    """Tell whether a path is the folder of a run: it holds the run's configuration."""
    return RunPaths(path).config.is_file()


def holds_runs(path: Path) -> bool:
    """Tell whether a path is a run folder, or a folder of run folders."""
    return is_run_folder(path) or any(path.glob(f"*/{CONFIG}"))


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Find run folders.

    Args:
        paths: run folders, and folders of run folders.

    Returns:
        Each run folder once, in the order of `paths`; those within one folder are sorted by name.

    Raises:
        UserError: a path is neither a run folder nor a folder of run folders. All such paths are listed.
    """
    found: list[Path] = []
    problems: list[str] = []
    for path in paths:
        inside = sorted(file.parent for file in path.glob(f"*/{CONFIG}") if file.is_file()) if path.is_dir() else []
        if is_run_folder(path):
            found.append(path)
        elif inside:
            found += inside
        else:
            problems.append(f"{path}: is neither a run folder (it has no {CONFIG}) nor a folder of run folders")
    if problems:
        raise UserError(problems)
    return list(dict.fromkeys(found))


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("step_*"):
        if match := _NUMBERED.fullmatch(path.name):
            yield int(match[1]), path


def _sorted_by(path: Path) -> tuple[int, int]:
    """The step of a checkpoint, and the number that the folder of a further one has."""
    match = _NUMBERED.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _is_folder_name(name: str) -> bool:
    return _NUMBERED.fullmatch(name) is not None and not name.endswith(".pt")


def _is_checkpoint(path: Path) -> bool:
    """Tell whether an entry with the name of a checkpoint is a folder or a file, as its name says."""
    return path.is_dir() if _is_folder_name(path.name) else path.is_file()
