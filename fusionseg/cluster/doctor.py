"""One page about this machine or this allocation: what there is, what is wrong with it, and what to do."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from packaging.requirements import Requirement

from fusionseg.cluster.slurm import call
from fusionseg.distributed.world import World
from fusionseg.performance.device_speed import all_reduce_seconds
from fusionseg.training.precision import choose_precision
from fusionseg.utils.errors import UserError
from fusionseg.utils.machine import available_cpus, available_memory_bytes

GOOD, POOR, BAD = "ok", "poor", "BAD"
_WRITE_BYTES = 256 << 20
_REDUCE_BYTES = 64 << 20
_SKEW_S = 1.0


@dataclass(frozen=True)
class Finding:
    """One line of the page."""

    name: str
    verdict: str
    text: str
    remedy: str = ""


def examine(folder: Path, world: World) -> list[Finding]:
    """All findings, on rank 0; all ranks must call it.

    Args:
        folder: where runs are to be written: its file system is measured.
    """
    findings: list[Finding] = []
    if world.is_rank_zero:
        for check in (_python, _torch, _processors, _gpus, lambda: _file_system(folder), _slurm):
            findings += check()
    if world.size > 1:
        findings += _ranks(world, folder)
    return findings


def to_text(findings: list[Finding]) -> str:
    """The page."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.name:<{width}}  {finding.verdict:<4}  {finding.text}")
        if finding.remedy:
            lines.append(f"{'':<{width}}        -> {finding.remedy}")
    return "\n".join(lines)


def _python() -> list[Finding]:
    """The packages, against the ranges that this one was installed with."""
    wrong, found = [], []
    for text in requires("fusionseg") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        found.append(f"{requirement.name} {installed}")
        if not requirement.specifier.contains(installed.split("+")[0], prereleases=True):
            wrong.append(f"{requirement.name} {installed} is not {requirement.specifier}")
    text = f"Python {platform.python_version()}, {', '.join(found)}"
    if wrong:
        return [Finding("packages", BAD, f"{'; '.join(wrong)} ({text})", "pip install -c constraints.txt -e .")]
    return [Finding("packages", GOOD, text)]


def _torch() -> list[Finding]:
    driver = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()
    if torch.cuda.is_available():
        return [Finding("CUDA", GOOD, f"torch for CUDA {torch.version.cuda}, NCCL {_nccl()}")]
    if not driver:
        return [Finding("CUDA", POOR, "no GPU and no driver here: training on the CPU")]
    if torch.version.cuda is None:
        remedy = "install torch's CUDA build: pip install -c constraints.txt torch, from PyPI's index"
        return [
            Finding("CUDA", BAD, f"there is an NVIDIA driver, and torch {torch.__version__} is a CPU build", remedy)
        ]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    remedy = (
        "CUDA_VISIBLE_DEVICES is empty: ask the scheduler for a GPU (--gres=gpu:1)"
        if hidden == ""
        else f"look at nvidia-smi: the driver may be too old for CUDA {torch.version.cuda}"
    )
    return [Finding("CUDA", BAD, "there is an NVIDIA driver, and torch sees no GPU", remedy)]


def _nccl() -> str:
    return ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else "missing"


def _processors() -> list[Finding]:
    cpus, there = available_cpus(), os.cpu_count() or 1
    memory = available_memory_bytes() / 1e9
    text = f"{cpus} CPUs for this process, {there} in the machine; {memory:.1f} GB of memory free"
    poor = []
    if 0 < torch.cuda.device_count() * 2 > cpus:
        poor.append(f"{cpus} CPUs for {torch.cuda.device_count()} GPUs: ask for more (--cpus-per-task)")
    if memory < 4:
        poor.append("too little memory to prepare volumes: ask for more (--mem)")
    found = [Finding("processors", POOR if poor else GOOD, text, "; ".join(poor))]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision("auto", device)
    found.append(Finding("precision", GOOD, f"{precision.name} ({precision.reason})"))
    return found


def _gpus() -> list[Finding]:
    """Each visible GPU by UUID, with what torch knows of it; then driver and links, as nvidia-smi prints them."""
    found = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        used = 1 - free / total
        found.append(
            Finding(
                f"GPU {number}",
                POOR if used > 0.1 else GOOD,
                f"{properties.name}, GPU-{properties.uuid}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free",
                "something else is using it: see nvidia-smi" if used > 0.1 else "",
            )
        )
    if found and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version,pcie.link.gen.current,pcie.link.width.current"]
        driver = _output([*query, "--format=csv,noheader"])
        found.append(Finding("driver", GOOD, "; ".join(sorted(set(driver.splitlines()))) + " (driver, PCIe, lanes)"))
        if len(found) > 2:
            found.append(Finding("links", GOOD, "\n" + _output(["nvidia-smi", "topo", "-m"])))
    return found


def _file_system(folder: Path) -> list[Finding]:
    """Write speed, locks and clock of where runs are to be."""
    existing = _existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".fusionseg-doctor-") as file:
            block = os.urandom(1 << 20)  # not zeros: some file systems compress
            start = time.perf_counter()
            for _ in range(_WRITE_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            speed = _WRITE_BYTES / 1e9 / (time.perf_counter() - start)
            ahead = os.stat(file.name).st_mtime - time.time()
            locks = _can_lock(file.fileno())
    except OSError as error:
        remedy = "choose another place by output=FOLDER, or --folder here"
        return [Finding("file system", BAD, f"cannot write in {existing}: {error.strerror}", remedy)]
    free = shutil.disk_usage(existing).free / 1e9
    remedies = []
    if speed < 0.1:
        remedies.append(
            f"a checkpoint of 1 GB takes {1 / speed:.0f} s: raise checkpoint.every and the profile's signal_s"
        )
    if free < 5:
        remedies.append("nearly full: make room, or choose another output")
    if abs(ahead) > _SKEW_S:
        remedies.append(f"its clock is {ahead:+.1f} s off this machine's: tell the administrators (NTP)")
    if not locks:
        remedies.append("it has no locks: never start a run twice at the same time")
    text = f"{existing}: writes {speed:.2f} GB/s, {free:.0f} GB free, locks {'work' if locks else 'do not work'}"
    return [Finding("file system", POOR if remedies else GOOD, text, "; ".join(remedies))]


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that there is already."""
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def _can_lock(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _slurm() -> list[Finding]:
    """Whether it is there and answers, and whether a preempted job is told in time."""
    if shutil.which("sinfo") is None:
        return [Finding("SLURM", POOR, "not found here: `fusionseg submit` needs a profile with cluster: local")]
    try:
        release = call(["sinfo", "--version"]).strip()
        call(["scontrol", "ping"])
        settings = call(["scontrol", "show", "config"])
    except UserError as error:
        return [Finding("SLURM", BAD, str(error), "is this a login or compute node? is slurmctld up?")]
    found = [Finding("SLURM", GOOD, f"{release}{_allocation()}")]
    known = {
        key.strip(): value.strip() for key, separator, value in (line.partition("=") for line in settings.splitlines())
        if separator
    }  # fmt: skip
    if "REQUEUE" in known.get("PreemptMode", "") and "send_user_signal" not in settings:
        found.append(
            Finding(
                "preemption",
                POOR,
                "jobs are requeued when preempted, without the signal that they ask for (send_user_signal)",
                "a preempted run saves only if its partition gives it a grace time (SIGTERM); else it goes on from its"
                " last regular checkpoint: keep checkpoint.every small",
            )
        )
    if known.get("JobRequeue") == "0":
        found.append(Finding("requeue", GOOD, "off by default here; profiles ask for it (requeue: true)"))
    return found


def _allocation() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f", in job {job} on {os.environ.get('SLURM_JOB_NODELIST')}" if job else ""


def _ranks(world: World, folder: Path) -> list[Finding]:
    """One line for each rank, the bandwidth between them, and how far their clocks are apart."""
    own = {
        "host": socket.gethostname(),
        "device": str(world.device),
        "cpus": available_cpus(),
        "gb": available_memory_bytes() / 1e9,
    }
    existing = _existing(folder)
    name = f".fusionseg-doctor-{uuid.uuid4().hex}" if world.is_rank_zero else ""
    shared = Path(world.broadcast_object(str(existing / name)))
    if world.is_rank_zero:
        with suppress(OSError):
            shared.touch()
    world.all_gather_object(None)  # all are here: what follows happens on all at nearly the same time
    own["sees"] = shared.exists()
    own["clock"] = time.time()
    entries: list[dict[str, Any]] = world.all_gather_object(own)
    bandwidth = _REDUCE_BYTES / 1e9 / all_reduce_seconds(world, _REDUCE_BYTES)
    smallest_s = all_reduce_seconds(world, 4, repeats=20)
    if world.is_rank_zero:
        shared.unlink(missing_ok=True)
    if not world.is_rank_zero:
        return []
    found = []
    for rank, entry in enumerate(entries):
        skew = entry["clock"] - entries[0]["clock"]
        remedies = []
        if abs(skew) > _SKEW_S:
            remedies.append(f"its clock is {skew:+.1f} s off rank 0's: tell the administrators (NTP)")
        if not entry["sees"]:
            remedies.append(
                f"does not see what rank 0 writes in {existing}: `output` must be on a file system that all nodes share"
            )
        text = (
            f"{entry['host']}, {entry['device']}, {entry['cpus']} CPUs, {entry['gb']:.1f} GB free,"
            f" clock {skew * 1e3:+.0f} ms"
        )
        found.append(Finding(f"rank {rank}", BAD if remedies else GOOD, text, "; ".join(remedies)))
    backend = "NCCL" if world.device.type == "cuda" else "gloo"
    slow = bandwidth < (1.0 if world.device.type == "cuda" else 0.1)
    remedy = "name the fast network: NCCL_SOCKET_IFNAME (GLOO_SOCKET_IFNAME), such as ib0" if slow else ""
    found.append(
        Finding(
            "all-reduce",
            POOR if slow else GOOD,
            f"{backend}, {world.size} ranks, {_REDUCE_BYTES >> 20} MB: {bandwidth:.2f} GB/s of each rank's data;"
            f" one number: {smallest_s * 1e6:.0f} us",
            remedy,
        )
    )
    return found


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def to_json(findings: list[Finding]) -> list[dict[str, str]]:
    """The page as plain values."""
    return [asdict(finding) for finding in findings]
