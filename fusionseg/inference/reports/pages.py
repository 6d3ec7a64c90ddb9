"""The pages of several folders, for `fusionseg report`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from fusionseg.inference.reports.case_sections import ReportOptions
from fusionseg.inference.reports.evaluation_page import write_evaluation_page
from fusionseg.inference.reports.run_page import write_run_page
from fusionseg.runs.evaluations import SUMMARY, evaluations_of
from fusionseg.runs.paths import CONFIG, REPORT, is_run_folder
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writable_folder

log = logging.getLogger("fusionseg")


def write_pages(paths: Sequence[Path], options: ReportOptions) -> Iterator[Path]:
    """Write the page of each folder. A run gets the pages of its evaluations too: those that are missing or older than
    their scores, and all of them if an option has another value than its default.

    Args:
        paths: run folders, and folders of evaluations.
        options: of the pages.

    Yields:
        The path of each page, when it is written.

    Raises:
        UserError: a path is neither a run folder nor an evaluation, or cannot be written. All such paths are listed,
            before any page is written.
    """
    problems = []
    for path in paths:
        if not is_run_folder(path) and not (path / SUMMARY).is_file():
            problems.append(
                f"{path}: is neither a run folder (it has no {CONFIG}) nor an evaluation (it has no {SUMMARY})"
            )
            continue
        try:
            writable_folder(path, "report")
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    for path in paths:
        if not is_run_folder(path):
            yield write_evaluation_page(path, options)
            continue
        for folder, summary in evaluations_of(path):
            if not summary:
                continue
            if options == ReportOptions() and _is_current(folder):
                log.info("%s: is newer than its scores and is kept", folder / REPORT)
                continue
            yield write_evaluation_page(folder, options)
        yield write_run_page(path)  # last, so that it has links to the pages of the evaluations


def _is_current(folder: Path) -> bool:
    """Tell whether the page of an evaluation is newer than its scores."""
    page = folder / REPORT
    return page.is_file() and page.stat().st_mtime_ns > (folder / SUMMARY).stat().st_mtime_ns
