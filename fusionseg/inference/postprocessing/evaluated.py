"""The post-processing of an evaluation, and whether it was chosen on the cases that are scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionseg.data.formats.image_digest import ImageSet
from fusionseg.inference.postprocessing.files import AUTO, NONE, asked_postprocessing
from fusionseg.inference.postprocessing.steps import PostProcessing
from fusionseg.runs.json_files import JsonObject
from fusionseg.utils.files import user_path

STORED, WITHOUT_OWN, FILE = "stored", "without own cases", "file"
"""The origin of the steps: those that the runs store, those chosen without the own cases of the run, or a file's."""
ORIGIN, CHOSEN_ON = "origin", "chosen_on"
"""Entries of `postprocessing` in the summary: the origin, and the number of scored cases that the choice was made on,
which is null where that is not known."""


@dataclass(frozen=True)
class EvaluatedPostProcessing:
    """The steps that are applied to the masks of an evaluation."""

    path: Path
    """The file with the steps."""
    steps: PostProcessing
    origin: str
    """`STORED`, `WITHOUT_OWN` or `FILE`."""
    images: ImageSet | None
    """The images that the steps were chosen on; None if the file does not state them."""

    def facts(self) -> JsonObject:
        """The entries of the summary that decide whether an earlier evaluation is still current."""
        return {ORIGIN: self.origin, **self.steps.to_json()}

    def is_recorded_in(self, summary: Mapping[str, object]) -> bool:
        """Tell whether an evaluation was made with these steps.

        Args:
            summary: of the evaluation.
        """
        recorded = summary.get("postprocessing")
        return isinstance(recorded, dict) and all(recorded.get(key) == value for key, value in self.facts().items())

    def to_json(self, images: Iterable[str | None]) -> JsonObject:
        """The entry of the summary.

        Args:
            images: digest of the image of each scored case; None where it is not known.
        """
        scored = list(images)
        count = None
        if self.origin == WITHOUT_OWN:
            count = 0
        elif self.images is not None and None not in scored:
            count = sum(image in self.images for image in scored if image is not None)
        return {"file": str(self.path), **self.facts(), CHOSEN_ON: count}


def requested(asked: str) -> str | None:
    """The value of `--postprocess` as an evaluation records it: `AUTO`, or the absolute path of the file.

    Args:
        asked: the value of the option.

    Returns:
        None for no post-processing.
    """
    if asked == NONE:
        return None
    return AUTO if asked == AUTO else str(user_path(asked).absolute())


def evaluated_postprocessing(asked: str, runs: Sequence[Path], *, of_own_cases: bool) -> EvaluatedPostProcessing | None:
    """Find the post-processing of an evaluation.

    The validation cases of a run are scored with the steps that were chosen without them, where the runs store such
    steps. Their scores are then those that new cases can expect.

    Args:
        asked: `AUTO`, `NONE`, or the path of a file.
        runs: the run, and those that are averaged with it.
        of_own_cases: the validation cases of the run are scored.

    Returns:
        None for no post-processing.

    Raises:
        UserError: see `asked_postprocessing`.
    """
    stored = asked_postprocessing(asked, runs, of_own_cases=of_own_cases)
    if stored is None:
        return None
    images = None if stored.images is None else ImageSet.of(stored.images)
    if asked == AUTO and of_own_cases and stored.without_own is not None:
        return EvaluatedPostProcessing(stored.path, stored.without_own, WITHOUT_OWN, images)
    return EvaluatedPostProcessing(stored.path, stored.steps, STORED if asked == AUTO else FILE, images)


def postprocessing_notes(facts: JsonObject, cases: int) -> list[str]:
    """Sentences about the post-processing of an evaluation, for a reader of its scores.

    Args:
        facts: `postprocessing` of the summary.
        cases: number of the scored cases.
    """
    try:
        steps = str(PostProcessing.from_json(facts))
    except ValueError:
        steps = "unknown steps"
    chosen_on = facts.get(CHOSEN_ON)
    if facts.get(ORIGIN) == WITHOUT_OWN:
        return [f"with post-processing: {steps} (chosen on the cases of the other runs)"]
    notes = [f"with post-processing: {steps}"]
    if chosen_on is None:
        notes.append("whether the post-processing was chosen on these cases is unknown")
    elif chosen_on:
        notes.append(
            f"optimistic scores: the post-processing was chosen on {chosen_on} of the {cases} cases; fusionseg"
            " postprocess with the runs of all folds chooses for each fold on the others"
        )
    return notes
