"""The preloaded library of the pretended GPU, built once for each build of torch, and the restart that loads it."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
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
        UserError: there is no C++ compiler, or it fails; or the file in the place of the library is another user's.
    """
    library = _library()
    if not _is_private(library):
        _build(library)
    preload = os.environ.get("LD_PRELOAD")
    environment = {**os.environ, "LD_PRELOAD": f"{library}:{preload}" if preload else str(library)}
    command = [sys.executable, *sys.orig_argv[1:], *arguments]
    return subprocess.run(command, env=environment, check=False).returncode


def _is_private(library: Path) -> bool:
    """Tell whether the library is there, and only this user can have written it.

    The temporary folder belongs to all users of the machine, and the name of the library can be foreseen.
    """
    try:
        status = library.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


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
    folder = Path(tempfile.mkdtemp(dir=library.parent))
    partial = folder / library.name
    command = [compiler, "-O1", "-std=c++20", "-shared", "-fPIC"]
    command += [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}", str(_SOURCE), f"-L{libraries}"]
    command += ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}", "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        if done.returncode:
            raise UserError(f"the library of the pretended GPU cannot be built: {done.stderr.strip()[-2000:]}")
        partial.chmod(0o700)
        partial.replace(library)  # several programs may build it at the same time
    except PermissionError:
        raise UserError(
            f"{library}: is another user's, and is not loaded; set TMPDIR to a folder of your own"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
