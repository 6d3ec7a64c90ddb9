"""A job that is told too late to leave is warned of."""

from __future__ import annotations

import logging

import pytest

from fusionseg.training.ending.signals import LEAD_VARIABLE, Lead


def test_it_warns_once_when_save_and_validation_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(LEAD_VARIABLE, "60")
    lead = Lead()
    with caplog.at_level(logging.WARNING, "fusionseg"):
        lead.took("save", 20)
        lead.took("validation", 30)
        assert caplog.messages == []
        lead.took("save", 31)
        lead.took("validation", 300)
    (message,) = caplog.messages
    assert "gets its signal 60 s before its end, but a save (31 s) and a validation (30 s) take longer" in message
    assert "raise the cluster profile's signal_s" in message


def test_without_a_signal_nothing_is_too_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(LEAD_VARIABLE, raising=False)
    Lead().took("save", 1e9)
    assert caplog.messages == []
