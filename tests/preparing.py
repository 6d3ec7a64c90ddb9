"""Preparation of a configured data set, and its store."""

from __future__ import annotations

from pathlib import Path

from fusionseg.config import RunConfig
from fusionseg.data.preprocessing.case_folders import read_cases
from fusionseg.data.preprocessing.prepare import PrepareReport, Progress, open_configured, open_store, prepare
from fusionseg.data.preprocessing.record import PreparedCase
from fusionseg.data.preprocessing.store import Store


def run(config: RunConfig, progress: Progress | None = None) -> PrepareReport:
    """Prepare all cases that are not prepared yet."""
    dataset = open_configured(config.data)
    return prepare(config.data, dataset, open_store(config.data, config.output, dataset), progress)


def opened(config: RunConfig) -> Store:
    """The store, which holds all cases."""
    store, missing = stored(config)
    assert missing == []
    return store


def stored(config: RunConfig) -> tuple[Store, list[str]]:
    """The store, and the names of the cases that it lacks."""
    dataset = open_configured(config.data)
    store = open_store(config.data, config.output, dataset)
    return store, [case.name for case in dataset.training if case.name not in store.cases]


def first_record(root: Path, name: str) -> PreparedCase | None:
    """The record of the first case of a name in a store; None if there is none."""
    return next(read_cases(root, name), None)
