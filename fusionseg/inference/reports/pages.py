"""The pages of several folders, for `fusionseg report`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from fusionseg.inference.reports.case_sections import ReportOptions
from fusionseg.inference.reports.evaluation_page import write_evaluation_page
from fusionseg.inference.reports.folder_page import write_folder_page
from fusionseg.inference.reports.run_page import write_run_page
from fusionseg.runs.evaluations import SUMMARY, evaluated_run, evaluations_of
from fusionseg.runs.paths import CONFIG, REPORT, holds_runs, is_run_folder, run_folders
from fusionseg.runs.trust.links import refuse_links
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writable_folder

log = logging.getLogger("fusionseg")


def write_pages(paths: Sequence[Path], options: ReportOptions) -> Iterator[Path]:
    """Write the page of each folder. A run gets the pages of its evaluations too: those that are missing or older than
    their scores, and all of them if an option has another value than its default. A folder of runs gets those of its
    runs, without their evaluations.

    Args:
        paths: run folders, folders of evaluations, and folders of run folders.
        options: of the pages.

    Yields:
        The path of each page, when it is written.

    Raises:
        UserError: a path is nothing of these, or cannot be written, or a file of a run is a link to a file elsewhere.
            All such paths are listed, before any page is written. Or no run of a folder has a validation: such folders
            are listed when all other pages are written.
    """
    problems: list[str] = []
    for path in paths:
        if not holds_runs(path) and not (path / SUMMARY).is_file():
            problems.append(
                f"{path}: is neither a run folder (it has no {CONFIG}), a folder of runs, nor an evaluation (it has no"
                f" {SUMMARY})"
            )
            continue
        try:
            writable_folder(path, "report")
            refuse_links(*([evaluated_run(path)] if (path / SUMMARY).is_file() else run_folders([path])))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    for path in paths:
        if (path / SUMMARY).is_file():
            yield write_evaluation_page(path, options)
        elif is_run_folder(path):
            yield from _pages_of_run(path, options)
        else:
            if options != ReportOptions():
                log.warning(
                    "%s: is a folder of runs, whose page has no pictures: the options change nothing there", path
                )
            yield from _pages_of_folder(path, problems)
    if problems:
        raise UserError(problems)


def _pages_of_run(run: Path, options: ReportOptions) -> Iterator[Path]:
    for folder, summary in evaluations_of(run):
        if not summary:
            continue
        if options == ReportOptions() and _is_current(folder):
            log.info("%s: is newer than its scores and is kept", folder / REPORT)
            continue
        yield write_evaluation_page(folder, options)
    yield write_run_page(run)  # last, so that it has links to the pages of the evaluations


def _pages_of_folder(folder: Path, problems: list[str]) -> Iterator[Path]:
    for run in run_folders([folder]):
        try:
            yield write_run_page(run)
        except UserError as error:  # a damaged run costs its own page only
            log.warning("%s", error)
    try:
        yield write_folder_page(folder)  # last, so that it has links to the pages of the runs
    except UserError as error:  # the other folders have their pages all the same
        problems += error.problems


def _is_current(folder: Path) -> bool:
    """Tell whether the page of an evaluation is newer than its scores."""
    page = folder / REPORT
    return page.is_file() and page.stat().st_mtime_ns > (folder / SUMMARY).stat().st_mtime_ns
