"""Memory that all ranks of a node share: one anonymous file in memory, which the first rank of the node makes.

The file has no name, so nothing remains of it after the last rank has ended, however it ended. Its size is not limited
by that of /dev/shm, which is 64 MB in many containers. Its pages take memory when they are first written.
"""

from __future__ import annotations

import mmap
import os
import socket
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionseg.distributed.world import World


@dataclass(frozen=True)
class _File:
    """An anonymous file, as the other processes of the node find and recognise it."""

    process: int
    descriptor: int
    identity: tuple[int, int]
    """Its device and inode: in another container, the number of the process may be that of another one."""


@dataclass(frozen=True)
class NodeMemory:
    """Bytes that all ranks of a node see."""

    bytes: Tensor
    """(N,) uint8."""
    writes: bool
    """Whether this rank is the one that fills them; the others wait for it before they read."""


def share_memory(world: World, size: int) -> NodeMemory | None:
    """Map the same bytes on all ranks of a node. All ranks must call it, with the same size.

    Args:
        world: the ranks.
        size: number of bytes, at least 1.

    Returns:
        None on every rank if a node has ranks that cannot see its memory, for example in separate containers, or if
        no rank shares its node.
    """
    host = socket.gethostname()
    hosts: list[str] = world.all_gather_object(host)
    first = hosts.index(host)
    if len(set(hosts)) == world.size:
        return None
    own = _create(size) if first == world.rank else None
    files: list[_File | None] = world.all_gather_object(own)
    file = files[first]
    descriptor = None if file is None else file.descriptor if own is not None else _open(file)
    try:
        if not all(world.all_gather_object(descriptor is not None)):
            return None
        assert descriptor is not None
        mapped = mmap.mmap(descriptor, size)
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return NodeMemory(torch.frombuffer(mapped, dtype=torch.uint8), own is not None)


def _create(size: int) -> _File | None:
    if not hasattr(os, "memfd_create"):  # Linux has it
        return None
    descriptor = os.memfd_create("fusionseg-cache")
    os.ftruncate(descriptor, size)
    state = os.fstat(descriptor)
    return _File(os.getpid(), descriptor, (state.st_dev, state.st_ino))


def _open(file: _File) -> int | None:
    """Open the file of another process; None if it cannot be seen from here."""
    try:
        descriptor = os.open(f"/proc/{file.process}/fd/{file.descriptor}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    state = os.fstat(descriptor)
    if (state.st_dev, state.st_ino) == file.identity:
        return descriptor
    os.close(descriptor)
    return None
