"""The files of a model card in a run folder. The author edits them, so that they are not replaced by themselves."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from fusionseg.export.card.claim import claim_text
from fusionseg.export.card.facts import card_facts, refuse_other_tasks
from fusionseg.export.card.text import card_text
from fusionseg.runs.paths import CARD, CLAIM, is_run_folder
from fusionseg.runs.trust.links import refuse_links
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writable_folder, write_text

log = logging.getLogger("fusionseg")


def write_card(
    run: Path, output: Path | None = None, licence: str | None = None, *, overwrite: bool = False
) -> list[Path]:
    """Write the model card and the checklist of a run.

    Args:
        run: the run folder.
        output: the folder for both; None is the run folder.
        licence: of the weights; None if it is not stated.
        overwrite: replace files that are there.

    Returns:
        The files.

    Raises:
        UserError: it is no run folder of a segmentation, files are there, or a file of the run is a link to a file
            elsewhere.
    """
    if not is_run_folder(run):
        raise UserError(f"{run}: is no run folder; give the folder that a training wrote")
    refuse_links(run)
    folder = output or run
    if not overwrite and (there := [str(folder / name) for name in (CARD, CLAIM) if (folder / name).exists()]):
        raise UserError(f"{', '.join(there)}: may have been edited, and is not replaced; add --overwrite, or move it")
    facts = card_facts(run)
    refuse_other_tasks(facts, run)
    writable_folder(folder, "--output")
    texts = {CARD: card_text(facts, licence), CLAIM: claim_text(facts)}
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def card_documents(runs: Sequence[Path], licence: str | None, steps: Mapping[Path, int]) -> dict[str, str]:
    """The card and the checklist for an export, by the name of the file.

    The files in the run folder are taken, which the author may have edited; otherwise they are made. A checkpoint file
    has none. Several runs have one file with all cards. Each card begins with the exported weights.

    Args:
        runs: that are exported.
        licence: of the weights; None if it is not stated.
        steps: of the exported weights, by the path of the checkpoint.

    Raises:
        UserError: a file of a run is damaged.
    """
    parts: dict[str, list[str]] = {CARD: [], CLAIM: []}
    for run in runs:
        if not is_run_folder(run):
            continue
        facts = card_facts(run)
        card = _edited(run / CARD)
        if card is not None and licence is not None and licence not in card:
            log.warning("%s: does not state the licence %s of this export; add it there", run / CARD, licence)
        exported = "; ".join(f"{path.name}, step {step}" for path, step in steps.items() if path.is_relative_to(run))
        parts[CARD].append(f"Exported weights: {exported}.\n\n{card_text(facts, licence) if card is None else card}")
        claim = _edited(run / CLAIM)
        parts[CLAIM].append(claim_text(facts) if claim is None else claim)
    return {name: "\n".join(texts) for name, texts in parts.items() if texts}


def _edited(path: Path) -> str | None:
    """The text of a file in the run folder; None if there is none.

    Raises:
        UserError: it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); write it again as UTF-8, or move it") from None
