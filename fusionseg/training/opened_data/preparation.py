"""The preparation of the cases of a run, and its split."""

from __future__ import annotations

import logging

from fusionseg.config import RunConfig
from fusionseg.data.preprocessing.prepare import prepare
from fusionseg.data.preprocessing.store import Store
from fusionseg.observability.progress import counting_progress
from fusionseg.runs.cases.opening import RunCases, log_split, settle_split
from fusionseg.runs.cases.split import Split
from fusionseg.utils.errors import UserError
from fusionseg.utils.tables import counted

log = logging.getLogger("fusionseg")


def prepare_and_split(config: RunConfig, run: RunCases) -> tuple[list[Store], Split]:
    """Return the stores of prepared cases, one for each data set, and the split of the run. Rank 0 calls it."""
    stores = _prepare_missing(run)
    split = settle_split(config, run, stores)
    log_split(run, split)
    return stores, split


def _prepare_missing(run: RunCases) -> list[Store]:
    """Prepare the cases that are not prepared yet; return the store of each data set."""
    problems: list[str] = []
    stores: list[Store] = []
    for part in run.datasets:
        used = {case.name for case in part.cases}
        total = len(part.dataset.training)
        missing = total - len(part.store.cases)
        if not missing:
            stores.append(part.store)
            continue
        log.info("preparing %d of %d cases of %s", missing, total, part.dataset.name)
        with counting_progress("preparing") as progress:
            report = prepare(part.data, part.dataset, part.store, progress)
        stores.append(report.store)
        for name, reason in sorted(report.failed.items()):
            # Cases that were added after the run began do not belong to it.
            if part.data.skip_broken or (run.recorded is not None and name not in used):
                log.warning("%s is left out: %s", name, reason)
            else:
                problems.append(f"  {name}: {reason}")
    if problems:
        raise UserError(
            [
                f"{counted(len(problems), 'case')} cannot be prepared: correct them, or set data.skip_broken=true to"
                " train without them",
                *problems,
            ]
        )
    return stores
