"""Marks of tests that need the package of a tracker."""

from __future__ import annotations

import importlib.util
import os

import pytest


def needs(package: str) -> pytest.MarkDecorator:
    """Skip a test without the package, unless FUSIONSEG_REQUIRE names it."""
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(
        missing and package not in os.environ.get("FUSIONSEG_REQUIRE", ""),
        reason=f"needs {package}: pip install -c constraints.txt -e '.[{package}]'",
    )
