"""The preloaded library of the pretended GPU, built once for each build of torch, and the restart that loads it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from fusionseg.utils.errors import UserError

_SOURCE = Path(__file__).with_name("hooks.cpp")


def is_loaded() -> bool:
    """Tell whether this process has a pretended GPU."""
    return str(_library()) in os.environ.get("LD_PRELOAD", "").split(":")


def restart_with_pretended_gpu(arguments: Sequence[str] = ()) -> int:
    """Build the library if it is not there, run this program again with it, and return the exit status of that process.

    Args:
        arguments: further arguments of the program.

    Raises:
        UserError: there is no C++ compiler, or it fails.
    """
    library = _library()
    if not library.exists():
        _build(library)
    preload = os.environ.get("LD_PRELOAD")
    environment = {**os.environ, "LD_PRELOAD": f"{library}:{preload}" if preload else str(library)}
    command = [sys.executable, *sys.orig_argv[1:], *arguments]
    return subprocess.run(command, env=environment, check=False).returncode


def _library() -> Path:
    built_for = f"{torch.__version__} {torch.__file__}".encode() + _SOURCE.read_bytes()
    name = f"fusionseg-pretended-gpu-{os.getuid()}-{hashlib.sha256(built_for).hexdigest()[:12]}.so"
    return Path(tempfile.gettempdir()) / name


def _build(library: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise UserError("no C++ compiler: install g++ to build the library of the pretended GPU")
    root = Path(torch.__file__).parent
    include, libraries = root / "include", root / "lib"
    partial = library.with_suffix(f".{os.getpid()}")
    command = [compiler, "-O1", "-std=c++20", "-shared", "-fPIC"]
    command += [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}", str(_SOURCE), f"-L{libraries}"]
    command += ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}", "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        partial.unlink(missing_ok=True)
        raise UserError(f"the library of the pretended GPU cannot be built: {done.stderr.strip()[-2000:]}")
    partial.replace(library)  # several programs may build it at the same time
