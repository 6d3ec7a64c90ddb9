"""A stand-in for NVML that real processes find in place of the driver's library: see fake_nvml.c."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("fake_nvml.c")
PREAMBLE = """
import json, os, sys, time
from pathlib import Path
from fusionseg.utils.logs import start_logging
from fusionseg.observability.gpu.monitor import GpuMonitor
from fusionseg.observability.gpu.nvml import NvmlError
from fusionseg.observability.gpu.visible_gpus import Nvml
start_logging()

def tell(value):
    print(json.dumps(value))
"""


class StandIn:
    """Starts programs whose NVML answers what a text says."""

    def __init__(self, libraries: Path, folder: Path) -> None:
        self.libraries = libraries
        self.folder = folder
        self.log = folder / "questions.log"

    def environ(self, settings: str, library: str = "new", **more: str) -> dict[str, str]:
        """Variables of a process: new or old driver, or none."""
        file = self.folder / "nvml.txt"
        file.write_text(settings)
        environ = {key: value for key, value in os.environ.items() if not key.startswith("CUDA_")}
        environ |= {"FAKE_NVML": str(file), "FAKE_NVML_LOG": str(self.log)}
        environ["LD_LIBRARY_PATH"] = str(self.libraries / library)
        return environ | more

    def run(self, code: str, settings: str = "", library: str = "new", **more: str) -> tuple[Any, str]:
        """What a program tells, and what it writes to stderr."""
        done = subprocess.run(
            [sys.executable, "-c", PREAMBLE + code],
            env=self.environ(settings, library, **more),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    def asked(self, counter: str, device: str) -> int:
        """How often a counter of a device was asked for."""
        return self.log.read_text().splitlines().count(f"{counter} {device}") if self.log.exists() else 0
