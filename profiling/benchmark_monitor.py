"""CPU time of the GPU monitor, as a share of one core.

    python profiling/benchmark_monitor.py [--seconds 60] [--interval 1] [--devices 1 4 8]

The result is the CPU time of the monitor's thread between its first and last sample, including gpu.csv, divided by the
wall time. Without a GPU a stand-in for NVML answers for --devices GPUs (tests/observability/fake_nvml.c; needs gcc).
The result then excludes the driver's part of each call.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from fusionseg.observability.gpu.monitor import GpuMonitor
from fusionseg.observability.gpu.samples import Sample
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE, run

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = ROOT / "tests/observability/fake_nvml.c"


def measure(seconds: float, interval_s: float, folder: Path) -> dict[str, float]:
    """Run the monitor for some seconds, with no other work, and measure its CPU time.

    Raises:
        UserError: the monitor does not run here, or the time is too short.
    """
    readings: list[tuple[float, float, int]] = []
    enough = threading.Event()

    def on_sample(samples: Sequence[Sample]) -> None:  # runs in the monitor's thread, whose CPU time it reads
        readings.append((time.monotonic(), time.thread_time(), len(samples)))
        if readings[-1][0] - readings[0][0] >= seconds:
            enough.set()

    monitor = GpuMonitor(folder / "gpu.csv", interval_s=interval_s, on_sample=on_sample)
    if (reason := monitor.start()) is not None:
        raise UserError(reason)
    while monitor.is_running and not enough.wait(1.0):
        pass
    monitor.stop()
    if len(readings) < 2:
        raise UserError(f"--seconds: the time is too short for two samples (got {seconds:g}); raise it")
    wall, cpu = readings[-1][0] - readings[0][0], readings[-1][1] - readings[0][1]
    rounds = len(readings) - 1
    return {
        "devices": readings[-1][2],
        "interval_s": interval_s,
        "samples": rounds,
        "wall_s": wall,
        "cpu_ms_per_sample": 1e3 * cpu / rounds,
        "percent_of_a_core": 100 * cpu / wall,
    }


def with_stand_in(seconds: float, interval_s: float, devices: Sequence[int], folder: Path) -> list[dict[str, float]]:
    """Measure in processes that load the stand-in in place of the driver's library.

    Args:
        seconds: measured time.
        interval_s: seconds between two samples.
        devices: numbers of GPUs.
        folder: folder for the library.

    Raises:
        UserError: gcc is missing.
    """
    library = folder / "libnvidia-ml.so.1"
    try:
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, STAND_IN], check=True)
    except FileNotFoundError:
        raise UserError("this machine has no GPU and no gcc, which builds the stand-in for NVML; install gcc") from None
    results = []
    for count in devices:
        settings = folder / "nvml.txt"
        settings.write_text(f"devices {count}\n", encoding="utf-8")
        environ = os.environ | {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML": str(settings)}
        environ.pop("CUDA_VISIBLE_DEVICES", None)
        command = [sys.executable, __file__, "--seconds", str(seconds), "--interval", str(interval_s), "--as-json"]
        done = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(done.stdout))
    return results


def main() -> int:
    """Measure, print the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="measured time (default: 60)")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between samples (default: 1)")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 4, 8], help="numbers of GPUs of the stand-in")
    parser.add_argument("--as-json", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()

    def work() -> int:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if options.as_json:
                print(json.dumps(measure(options.seconds, options.interval, folder)))
                return DONE
            probe = GpuMonitor(None)
            reason = probe.start()
            probe.stop()
            if reason is None:
                results, remark = [measure(options.seconds, options.interval, folder)], "GPUs of this machine"
            else:
                print(f"{reason}\n", file=sys.stderr)
                results = with_stand_in(options.seconds, options.interval, options.devices, folder)
                remark = "stand-in for NVML; the driver's part of each call is not included"
        print(f"{remark}\n\n| GPUs | interval s | samples | CPU ms per sample | % of a core |\n|---|---|---|---|---|")
        for result in results:
            print(
                f"| {result['devices']} | {result['interval_s']:g} | {result['samples']}"
                f" | {result['cpu_ms_per_sample']:.2f} | {result['percent_of_a_core']:.3f} |"
            )
        return DONE

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
