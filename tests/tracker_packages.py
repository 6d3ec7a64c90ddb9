"""Marks of tests that need the package of an extra: a tracker, or the sampler of a search."""

from __future__ import annotations

import importlib.util
import os

import pytest


def needs(package: str, extra: str = "") -> pytest.MarkDecorator:
    """Skip a test without the package, unless FUSIONSEG_REQUIRE names it.

    Args:
        package: its name.
        extra: the extra of setup.cfg, if it has another name.
    """
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(
        missing and package not in os.environ.get("FUSIONSEG_REQUIRE", ""),
        reason=f"needs {package}: pip install -c constraints.txt -e '.[{extra or package}]'",
    )
