"""Preparation of a configured data set, and its store."""

from __future__ import annotations

from fusionseg.config import RunConfig
from fusionseg.data.preprocessing.prepare import PrepareReport, open_configured, open_store, prepare
from fusionseg.data.preprocessing.store import Store


def run(config: RunConfig) -> PrepareReport:
    return prepare(config, open_configured(config))


def opened(config: RunConfig) -> Store:
    store, missing = open_store(config, open_configured(config))
    assert missing == []
    return store
