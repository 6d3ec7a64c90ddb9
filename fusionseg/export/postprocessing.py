"""The post-processing of the exported runs, as a file of an archive or a bundle."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from fusionseg.inference.postprocessing.files import find_postprocessing, postprocessing_content
from fusionseg.runs.paths import POSTPROCESSING
from fusionseg.utils.files import json_text

log = logging.getLogger("fusionseg")

_PUBLIC = ("cases", "checkpoint", "dice", "changed", "images")
"""Entries of `chosen` without folders of the machine and names of cases."""


def postprocessing_documents(runs: Sequence[Path]) -> dict[str, str]:
    """The text of postprocessing.json by its name; empty if the runs have none, or have different ones.

    It has no folders and no names of cases. The digests of the images that it was chosen on stay, as those of the split
    do: an evaluation tells by them whether it scores such images.

    Args:
        runs: run folders, checkpoint files or archives.

    Raises:
        UserError: the file of a run is damaged.
    """
    found = find_postprocessing(runs)
    if not found:
        return {}
    first = found[0]
    if len(found) < len(runs) or any(one.steps != first.steps for one in found):
        log.warning(
            "the post-processing is not exported: the runs do not have one and the same; fusionseg postprocess %s"
            " chooses it",
            " ".join(map(str, runs)),
        )
        return {}
    chosen = {name: value for name, value in first.chosen.items() if name in _PUBLIC}
    log.info("with the post-processing of %s: %s", first.path, first)
    return {POSTPROCESSING: json_text(postprocessing_content(first.steps, chosen))}
