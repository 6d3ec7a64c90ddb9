"""The evaluations of a sweep on this machine: as many at a time as runs can train."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen

from fusionseg.cluster.profile import ClusterConfig
from fusionseg.cluster.slots import Slot, slots_for, start_process
from fusionseg.cluster.sweep import JOBS_FOLDER, Sweep
from fusionseg.runs.trust.consent import is_trusting
from fusionseg.utils.files import open_no_link, writing

_POLL_S = 0.2


def evaluate_locally(sweep: Sweep, due: Sequence[Path], cluster: ClusterConfig, device: str) -> None:
    """Evaluate runs of a sweep, each in a process, as many at a time as there are slots.

    The output is appended to the log of the run. A failure is printed with its exit status alone. An interruption ends
    the processes.

    Args:
        sweep: the sweep.
        due: the folders of the runs to evaluate.
        cluster: the profile of this machine.
        device: `auto`, `cuda` or `cpu`.
    """
    waiting, free = deque(due), slots_for(cluster)
    logs = sweep.folder / JOBS_FOLDER
    logs.mkdir(parents=True, exist_ok=True)  # the runs may have been trained without a sweep
    total, done = len(waiting), 0
    running: list[tuple[Popen[bytes], Path, Slot]] = []
    try:
        while waiting or running:
            while waiting and free:
                folder, slot = waiting.popleft(), free.pop(0)
                arguments = ["-m", "fusionseg", "evaluate", str(folder), "--skip-existing", "--device", device]
                arguments += ["--trust"] if is_trusting() else []
                log = logs / f"{folder.name}.log"
                with writing(log), open_no_link(log, "ab") as output:
                    running.append((start_process(arguments, slot, cluster, output), folder, slot))
            time.sleep(_POLL_S)
            for ended in [one for one in running if one[0].poll() is not None]:
                process, folder, slot = ended
                running.remove(ended)
                free.append(slot)
                done += 1
                outcome = "evaluated" if process.returncode == 0 else f"evaluation: exit status {process.returncode}"
                print(f"[{done} of {total}] {folder.name}: {outcome}", flush=True)
    finally:
        for process, _, _ in running:
            process.send_signal(signal.SIGTERM)
        for process, _, _ in running:
            process.wait()
