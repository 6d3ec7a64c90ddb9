"""The post-processing of a run, stored in its folder: `postprocessing.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.inference.postprocessing.steps import PostProcessing
from fusionseg.runs.archive.layout import is_archive
from fusionseg.runs.archive.reader import read_document
from fusionseg.runs.json_files import JsonObject, is_number
from fusionseg.runs.paths import POSTPROCESSING, RunPaths, run_of_weights
from fusionseg.utils.errors import UserError, suggest
from fusionseg.utils.files import write_json

AUTO, NONE = "auto", "none"
"""Values of `--postprocess` beside the path of a file: that of the runs, and nothing."""
_FORMAT = "fusionseg post-processing"
_WITHOUT_OWN = "without_own_cases"


@dataclass(frozen=True)
class StoredPostProcessing:
    """A post-processing from a file."""

    path: Path
    steps: PostProcessing
    chosen: JsonObject
    """The cases that it was chosen on, and its effect on them; empty in a file that was written by hand."""
    without_own: PostProcessing | None = None
    """The steps that were chosen without the validation cases of this run; None if there were no other runs."""

    @property
    def images(self) -> tuple[str, ...] | None:
        """Digests of the images that it was chosen on; None if the file does not state them."""
        found = self.chosen.get("images")
        return tuple(map(str, found)) if isinstance(found, list) else None

    def __str__(self) -> str:
        cases, dice = self.chosen.get("cases"), self.chosen.get("dice")
        if not isinstance(cases, int) or not isinstance(dice, dict):
            return str(self.steps)
        parts = (dice.get(when) for when in ("before", "after"))
        means = [part.get("mean") if isinstance(part, dict) else None for part in parts]
        known = [float(mean) for mean in means if mean is not None and is_number(mean)]
        effect = f", mean Dice {known[0]:.4f} to {known[1]:.4f}" if len(known) == len(means) else ""
        return f"{self.steps} (chosen on {cases} validation cases{effect})"


def write_postprocessing(
    run: Path, steps: PostProcessing, chosen: JsonObject, without_own: PostProcessing | None = None
) -> Path:
    """Write the post-processing of a run into its folder, and return the file.

    Args:
        run: the run folder.
        steps: the post-processing.
        chosen: the cases that it was chosen on, and its effect on them.
        without_own: see `StoredPostProcessing`.

    Raises:
        WriteError: the file cannot be written.
    """
    path = RunPaths(run).postprocessing
    write_json(path, postprocessing_content(steps, chosen, without_own))
    return path


def postprocessing_content(
    steps: PostProcessing, chosen: JsonObject, without_own: PostProcessing | None = None
) -> JsonObject:
    """The content of a file of a post-processing.

    Args:
        steps, chosen, without_own: see `write_postprocessing`.
    """
    own = {} if without_own is None else {_WITHOUT_OWN: without_own.to_json()}
    return {"format": _FORMAT, **steps.to_json(), **own, "chosen": chosen}


def read_postprocessing(path: Path) -> StoredPostProcessing:
    """Read a post-processing from its file.

    Args:
        path: `postprocessing.json` of a run, or a copy of it.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    try:
        return _parsed(path, json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"--postprocess: {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"--postprocess: {path}: is no post-processing ({error})") from error


def _parsed(path: Path, content: Any) -> StoredPostProcessing:
    """A post-processing from the content of its file.

    Raises:
        ValueError: it is damaged.
    """
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f'expected "format": "{_FORMAT}"')
    chosen, without_own = content.get("chosen"), content.get(_WITHOUT_OWN)
    return StoredPostProcessing(
        path,
        PostProcessing.from_json(content),
        chosen if isinstance(chosen, dict) else {},
        PostProcessing.from_json(without_own) if isinstance(without_own, dict) else None,
    )


def find_postprocessing(runs: Sequence[Path]) -> list[StoredPostProcessing]:
    """Read the post-processing of each run that has one.

    Args:
        runs: run folders, checkpoint files or archives.

    Raises:
        UserError: a file is damaged.
    """
    found = (_of_archive(run) if is_archive(run) else _of_run(run) for run in runs)
    return [one for one in found if one is not None]


def _of_run(run: Path) -> StoredPostProcessing | None:
    path = RunPaths(run_of_weights(run)).postprocessing
    return read_postprocessing(path) if path.is_file() else None


def _of_archive(archive: Path) -> StoredPostProcessing | None:
    content = read_document(archive, POSTPROCESSING)
    try:
        return None if content is None else _parsed(archive, content)
    except ValueError as error:
        raise UserError(f"--postprocess: {archive}: {POSTPROCESSING} is no post-processing ({error})") from error


def asked_postprocessing(
    asked: str, runs: Sequence[Path], *, of_own_cases: bool = False
) -> StoredPostProcessing | None:
    """The post-processing that `--postprocess` asks for; None for nothing.

    Args:
        asked: `AUTO`, `NONE`, or the path of a file.
        runs: run folders, checkpoint files or archives.
        of_own_cases: `without_own` of the runs must be the same too.

    Raises:
        UserError: there is no such post-processing, or the runs have different ones.
    """
    if asked == NONE:
        return None
    if asked == AUTO:
        found = find_postprocessing(runs)
        if len(found) < len(runs):
            if archives := [run for run in runs if is_archive(run)]:
                raise UserError(
                    f"--postprocess auto: {archives[0]}: has none; export the run again after fusionseg postprocess, or"
                    f" give its {POSTPROCESSING}"
                )
            names = " ".join(dict.fromkeys(str(run_of_weights(run)) for run in runs))
            raise UserError(f"--postprocess auto: a run has none; fusionseg postprocess {names} chooses it")
        used = [(one.steps, one.without_own if of_own_cases else None) for one in found]
        if any(one != used[0] for one in used):
            raise UserError(
                "--postprocess auto: the runs have different post-processings; give the file of one,"
                f" --postprocess {found[0].path}, or choose one for all by fusionseg postprocess RUN RUN ..."
            )
        return found[0]
    return read_postprocessing(Path(asked).expanduser())


def refuse_other_classes(path: Path, steps: PostProcessing, scheme: LabelScheme) -> None:
    """Refuse steps of classes that the networks do not have.

    Args:
        path: the file of the steps.
        steps: the post-processing.
        scheme: of the outputs of the networks.

    Raises:
        UserError: with all such classes.
    """
    unknown = [name for name in steps.steps if name not in scheme.output_names]
    if unknown:
        names = ", ".join(repr(name) for name in unknown)
        raise UserError(f"{path}: steps of {names}: {suggest(unknown[0], scheme.output_names)}")
