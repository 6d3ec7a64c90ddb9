"""The environment of a run's last start, in `environment.json`: versions, commit, command, devices."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fusionseg.runs.json_files import JsonObject, read_object
from fusionseg.runs.paths import RunPaths
from fusionseg.utils.files import write_json
from fusionseg.utils.version import __version__

PACKAGES = ("torch", "monai", "numpy", "nibabel", "pydantic", "nvtx")


def write_environment(run: Path, ranks: Sequence[dict[str, Any]], parameters: int, implementation: str) -> None:
    """Write the environment of this start.

    Args:
        run: the run folder.
        ranks: host and device of each rank.
        parameters: number of parameters of the network.
        implementation: of the network's backward passes: fused, reference, or plain for a network without own ones.
    """
    write_json(
        RunPaths(run).environment,
        {
            **versions(),
            "command": sys.argv,
            "parameters": parameters,
            "implementation": implementation,
            "world_size": len(ranks),
            "ranks": list(ranks),
        },
    )


def versions() -> JsonObject:
    """The versions of this program, of Python, of the packages that compute, and of CUDA."""
    import torch  # takes seconds to import, and readers do not need it

    return {
        "fusionseg": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
    }


def read_environment(run: Path) -> JsonObject:
    """Read the environment of a run's last start; empty if there is none, or if it is damaged.

    Args:
        run: the run folder.
    """
    return read_object(RunPaths(run).environment)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree that this package runs from, followed by `-dirty` if files have changed."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
