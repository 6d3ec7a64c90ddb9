"""The configuration of a run: read from its folder, and compared with that of the next start."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from fusionseg.config import RunConfig, differences, dump_config, validate
from fusionseg.config.loading import lay_over
from fusionseg.config.outside import PartError
from fusionseg.config.outside_part import without_sources
from fusionseg.config.override import parse_override
from fusionseg.config.parts.task import TaskInfo, task_info
from fusionseg.config.yaml_location import Locations, read_yaml
from fusionseg.runs.archive.layout import is_archive
from fusionseg.runs.archive.reader import read_config
from fusionseg.runs.continuation.changes import ways_text
from fusionseg.runs.json_files import read_regular
from fusionseg.runs.paths import BEST, LAST, RunPaths, checkpoints_of
from fusionseg.runs.trust.foreign_code import check_code, unknown_code
from fusionseg.runs.trust.known_code import remember_own
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import write_text

log = logging.getLogger("fusionseg")

OTHER_NAME = "choose another name"
"""The change of a command that chooses another run folder. The names of a sweep's runs follow from the sweep."""

# These keys may differ between two starts of one run. The results do not depend on them but for rounding.
RESUME_FREE_KEYS = (
    ("name",), ("output",), ("resume",), ("init_from_seen",), ("device",), ("log",), ("profile",), ("cache", "device"),
    ("cache", "memory_fraction"), ("cache", "read_threads"), ("checkpoint",), ("stop", "at"), ("data", "root"),
    ("data", "base_dir"), ("data", "prepared"), ("data", "workers"), ("model", "implementation"), ("train", "threads"),
    ("train", "checkpoint_activations"), ("train", "cuda_graph"), ("train", "cudnn_benchmark"),
    ("train", "deterministic"), ("train", "spikes"), ("train", "micro_batch_found"),
    ("validate", "window_batch"), ("metrics",), ("evaluate",), ("distributed", "parallel"),
    ("distributed", "timeout_s"), ("distributed", "bind_cpus"), ("distributed", "hang_warn_s"),
    ("distributed", "hang_end_s"),
)  # fmt: skip


def write_run_config(run: Path, config: RunConfig) -> None:
    """Write the resolved configuration into a run folder.

    With `train.micro_batch: auto`, the number that the run has found stays in the file until it finds another one.

    Args:
        run: the run folder; it is made if it does not exist.
        config: the configuration.
    """
    if config.train.micro_batch == "auto" and checkpoints_of(run):
        with suppress(UserError):  # a damaged file is replaced
            config = with_found_micro_batch(config, stored_config(run)[0])
    write_text(RunPaths(run).config, dump_config(config))


def load_run_config(run: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load the resolved configuration of a run.

    Args:
        run: the run folder, or an archive.
        overrides: `key.path=value` settings that are laid over it.

    Raises:
        UserError: the path is no run folder, the configuration is damaged, it names code of others that is not allowed,
            or the result is not valid.
    """
    if not is_archive(run) and not RunPaths(run).config.exists():
        raise UserError(
            f"{run}: is no run folder ({RunPaths(run).config.name} is missing): give the folder that a training wrote"
        )
    plain, locations = stored_config(run)
    if not is_archive(run):
        check_code(plain, RunPaths(run).config)
    merged = lay_over(plain, locations, [parse_override(text, RunConfig) for text in overrides])
    return validate(*merged, recorded=True)


def stored_config(run: Path) -> tuple[dict[str, Any], Locations]:
    """Read the configuration of a run folder, or that of its newest checkpoint where the file is damaged.

    Args:
        run: the run folder, or an archive.

    Returns:
        The plain configuration, and the line of each key; no lines where it comes from a checkpoint.

    Raises:
        UserError: the file cannot be read, and no checkpoint beside it holds the configuration.
    """
    if is_archive(run):
        return read_config(run), {}
    path = RunPaths(run).config
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait
            raise UserError(f"{path}: is no file")
        plain, locations = read_yaml(path)
        if not plain:
            raise UserError(f"{path}: is empty")
        return plain, locations
    except UserError as error:
        found = _config_of_checkpoints(run)
        if found is None:
            raise
        checkpoint, config = found
        log.warning("%s: the configuration is taken from %s", error.problems[0], checkpoint)
        return config, {}


def plain_config(run: Path) -> dict[str, Any]:
    """Read the configuration of a run folder as plain values, quickly: for tables over many runs.

    Keys that are newer than the run have their defaults, unless the configuration is that of another version and is not
    valid now. Then its values are returned as they are.

    Args:
        run: the run folder.

    Raises:
        UserError: the file cannot be read, or is no configuration of a run.
    """
    path = RunPaths(run).config
    try:
        plain = yaml.load(read_regular(path).decode("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).partition(chr(10))[0]}") from None
    if not isinstance(plain, dict) or not isinstance(plain.get("data"), dict):
        raise UserError(f"{path}: is no configuration of a run")
    return with_defaults(plain)


def with_defaults(plain: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of keys that are newer than a plain configuration.

    One that is not valid, or that names code of others, is left as it is: tables and comparisons import nothing.
    """
    if unknown_code(plain):
        return plain
    try:
        return validate(plain, recorded=True).to_dict()
    except UserError:
        return plain


def recorded_task(plain: Mapping[str, Any], origin: Path) -> TaskInfo:
    """The task of the plain configuration of a run.

    Args:
        plain: the configuration.
        origin: the file that has it, for messages.

    Raises:
        UserError: the task is code of others that is not allowed, or it is not found.
    """
    task = plain.get("task")
    check_code({"task": task}, origin)
    try:
        return task_info(pretrain=plain.get("pretrain"), task=task)
    except PartError as error:
        raise UserError(f"{origin}: {error}") from error


def configured_steps(run: Path) -> int | None:
    """The value of `train.steps` of a run; None, with a warning, if the configuration is damaged.

    Args:
        run: the run folder.
    """
    path = RunPaths(run).config
    try:
        steps = read_yaml(path)[0].get("train", {}).get("steps")
    except (UserError, AttributeError) as error:
        log.warning("%s", error if isinstance(error, UserError) else f"{path}: is no configuration of a run")
        return None
    return steps if isinstance(steps, int) else None


def refuse_other_config(
    path: Path,
    before: dict[str, Any],
    config: RunConfig,
    elsewhere: str = OTHER_NAME,
    earlier: Sequence[dict[str, Any]] = (),
) -> None:
    """Refuse to continue a run under a configuration that gives other results.

    Args:
        path: the run folder or the checkpoint that holds the run, for the message.
        before: the plain configuration under which the run was trained.
        config: the configuration of this start.
        elsewhere: for the message, the change of the command that chooses another folder.
        earlier: plain configurations that the run has had before it was extended. They are allowed too.

    Raises:
        UserError: with all differences.
    """
    # The code of the present configuration is the user's own, and the earlier one that names it is read with defaults.
    remember_own(config.to_dict(), write=False)
    stored = with_defaults(before)
    changed = relevant_changes(stored, config.to_dict())
    if changed and all(relevant_changes(with_defaults(each), stored) for each in earlier):
        raise UserError(
            f"{path}: holds a run of a different configuration: {elsewhere}, or restore the values (stored -> now):\n  "
            + "\n  ".join(changed)
            + f"\n{ways_text(path, changed)}"
        )


def relevant_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List `key: before -> now` for each value that the results depend on.

    A run with `train.micro_batch: auto` in one of them may have any micro-batch in the other: `auto` is refused where
    the results depend on it.

    Args:
        before, now: plain configurations with all their keys.
    """
    kept = resume_relevant(before), resume_relevant(now)
    sections = [one["train"] for one in kept if isinstance(one.get("train"), dict)]
    if any("micro_batch" not in section for section in sections):
        for section in sections:
            section.pop("micro_batch", None)
    return differences(*kept)


def found_micro_batch(plain: dict[str, Any]) -> int | None:
    """The number that a run has found for `train.micro_batch: auto`; None if there is none.

    Args:
        plain: the configuration of the run.
    """
    train = plain.get("train")
    if not isinstance(train, dict):  # a file that was edited by hand may hold anything
        return None
    number = train.get("micro_batch")
    return number if isinstance(number, int) and number == train.get("micro_batch_found") else None


def with_found_micro_batch(config: RunConfig, before: dict[str, Any]) -> RunConfig:
    """A configuration with `train.micro_batch: auto` and the number that its run has found, if there is one.

    Args:
        config: the configuration of this start.
        before: the plain configuration of the run up to now.
    """
    number = found_micro_batch(before)
    if number is None or config.train.micro_batch != "auto":
        return config
    return config.model_copy(update={"train": config.train.with_micro_batch(number)})


def resume_relevant(plain: dict[str, Any]) -> dict[str, Any]:
    """The part of a plain configuration that the results depend on: all but `RESUME_FREE_KEYS`.

    With `train.micro_batch: auto` the micro-batch is none of it, also where a run has found its number.

    The recorded source of a part from outside is no setting: a changed one is a warning (`source_changes`).
    """
    kept: dict[str, Any] = json.loads(json.dumps(without_sources(plain), default=str))
    train = kept.get("train")
    if isinstance(train, dict) and train.get("micro_batch") in ("auto", train.get("micro_batch_found")):
        train.pop("micro_batch", None)
    for path in RESUME_FREE_KEYS:
        section: Any = kept
        for key in path[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict):  # a file that was edited by hand may hold anything
            section.pop(path[-1], None)
    if kept.get("distributed") == {}:  # a configuration without the section is the same
        del kept["distributed"]
    data = kept.get("data")
    for further in (data.get("also") or []) if isinstance(data, dict) else []:
        if isinstance(further, dict):
            for key in ("root", "base_dir", "prepared"):
                further.pop(key, None)
    return kept


def config_hash(config: RunConfig) -> str:
    """A short hash of the `resume_relevant` part of a configuration."""
    return hashlib.sha256(json.dumps(resume_relevant(config.to_dict()), sort_keys=True).encode()).hexdigest()[:16]


def _config_of_checkpoints(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be read, and the configuration in it."""
    # Imported here: it needs torch, and an intact configuration is read without.
    from fusionseg.runs.checkpoints import read_checkpoint

    folder = RunPaths(run).checkpoints
    for path in (*(path for _, path in checkpoints_of(run)), folder / LAST, folder / BEST):
        try:
            config = read_checkpoint(path).get("config")
        except UserError:
            continue
        if isinstance(config, dict):
            return path, config
    return None
