"""The devices of this machine, divided among processes that work at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from fusionseg.cluster.profile import ClusterConfig
from fusionseg.utils.machine import available_cpus


@dataclass(frozen=True)
class Slot:
    """The GPUs and CPUs of one process at a time. The next process takes the slot of one that has ended."""

    gpus: list[str]
    cpus: list[int]


def slots_for(cluster: ClusterConfig) -> list[Slot]:
    """Return a slot for each run that can work at the same time: as many as there are devices, at most `parallel`.

    Args:
        cluster: the profile, with the devices of a run.
    """
    gpus, cpus = visible_gpus(), sorted(os.sched_getaffinity(0))
    count = min(cluster.parallel, max(1, available_cpus() // (cluster.ranks_per_node * cluster.cpus_per_task)))
    if cluster.gpus_per_node:
        count = min(cluster.parallel, len(gpus) // cluster.gpus_per_node)
    own, each = cluster.gpus_per_node, max(1, len(cpus) // count)
    return [
        Slot(gpus[n * own : (n + 1) * own], cpus[n * each : (n + 1) * each] if n * each < len(cpus) else cpus)
        for n in range(count)
    ]


def start_process(
    arguments: Sequence[str], slot: Slot, cluster: ClusterConfig, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start Python in a slot, with the environment of the profile.

    The process is in a session of its own, so that it does not receive a Ctrl-C of the terminal.

    Args:
        arguments: of Python, such as `-m`, a module and its arguments.
        slot: its devices.
        cluster: the profile.
        output: file for its stdout and stderr.
    """
    environ = {**os.environ, **cluster.environment}
    if slot.gpus:
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
    command = [cluster.python or sys.executable, *arguments]
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environ, start_new_session=True)
    os.sched_setaffinity(process.pid, slot.cpus)  # at once: a run counts its CPUs when torch is imported
    return process


def visible_gpus() -> list[str]:
    """Return the visible GPUs, by the names that CUDA_VISIBLE_DEVICES uses."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    named = [part for part in given.split(",") if part]
    return named or [str(number) for number in range(torch.cuda.device_count())]
