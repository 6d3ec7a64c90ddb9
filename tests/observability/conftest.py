"""The stand-in for NVML: built once, new for every test."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from stand_in_nvml import SOURCE, StandIn


@pytest.fixture(scope="session")
def nvml_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders new, old and none with the stand-in's library, or without."""
    if shutil.which("gcc") is None and "gcc" not in os.environ.get("FUSIONSEG_REQUIRE", ""):
        pytest.skip("needs gcc for the stand-in of NVML")
    folder = tmp_path_factory.mktemp("nvml")
    for name, options in (("new", []), ("old", ["-DOLD_DRIVER"])):
        (folder / name).mkdir()
        library = folder / name / "libnvidia-ml.so.1"
        subprocess.run(
            ["gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", *options, "-o", library, SOURCE], check=True
        )
    (folder / "none").mkdir()
    # Where there is a driver, an empty folder would not hide it, and a file that is no library does.
    (folder / "none" / "libnvidia-ml.so.1").write_text("")
    return folder


@pytest.fixture
def nvml(nvml_libraries: Path, tmp_path: Path) -> StandIn:
    return StandIn(nvml_libraries, tmp_path)
