"""Kinds of file systems: whether other machines can write to the same folder."""

from __future__ import annotations

import os
from pathlib import Path

_SHARED = {
    "9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "orangefs", "panfs",
    "pvfs2", "smb3", "virtiofs", "wekafs",
}  # fmt: skip


def is_shared(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Tell whether a folder is on a file system that other machines may have mounted. File locks there may be local.

    Args:
        folder: it exists.
        mounts: the kernel's table of mounted file systems.
    """
    try:
        device = folder.stat().st_dev
        table = mounts.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in table.splitlines():
        mount, _, rest = line.partition(" - ")
        kind = rest.partition(" ")[0]
        if mount.split()[2] == number:
            return kind in _SHARED or kind.startswith("fuse.")
    return False
