"""`fusionseg doctor`: one page about this machine or allocation, with a remedy for each problem."""

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
from fusionseg.distributed.device_speed import all_reduce_seconds
from fusionseg.distributed.world import World
from fusionseg.training.precision import choose_precision
from fusionseg.utils.errors import UserError
from fusionseg.utils.machine import available_cpus, available_memory_bytes

GOOD, POOR, BAD = "ok", "poor", "BAD"
_WRITE_BYTES = 256 << 20
_REDUCE_BYTES = 64 << 20
_SKEW_S = 1.0
_FORMATS = {"extra": "formats"}


@dataclass(frozen=True)
class Finding:
    """One line of the page: a part of the machine, the verdict, and a remedy if there is a problem."""

    name: str
    verdict: str
    text: str
    remedy: str = ""


def examine(folder: Path, world: World) -> list[Finding]:
    """Examine the machine. All ranks call it.

    Args:
        folder: folder of the runs; its file system is measured.
        world: the ranks.

    Returns:
        The findings on rank 0; an empty list on the other ranks.
    """
    findings: list[Finding] = []
    if world.is_rank_zero:
        for check in (_python, _torch, _processors, _gpus, lambda: _file_system(folder), _slurm):
            findings += check()
    if world.size > 1:
        findings += _ranks(world, folder)
    return findings


def to_text(findings: list[Finding]) -> str:
    """Format the findings as a page."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.name:<{width}}  {finding.verdict:<4}  {finding.text}")
        if finding.remedy:
            lines.append(f"{'':<{width}}        -> {finding.remedy}")
    return "\n".join(lines)


def _python() -> list[Finding]:
    """The installed packages, compared with the version ranges of this package; then those of the extra `formats`."""
    try:
        requirements = [Requirement(text) for text in requires("fusionseg") or []]
    except PackageNotFoundError:  # imported from a folder on PYTHONPATH
        remedy = "pip install -c constraints.txt -e ."
        return [Finding("packages", POOR, "fusionseg is not installed: its requirements are unknown", remedy)]
    needed = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    optional = [one for one in requirements if one not in needed and one.marker and one.marker.evaluate(_FORMATS)]
    wrong, found = _compared(needed)
    text = f"Python {platform.python_version()}, {', '.join(found)}"
    verdict = Finding("packages", GOOD, text)
    if wrong:
        verdict = Finding("packages", BAD, f"{'; '.join(wrong)} ({text})", "pip install -c constraints.txt -e .")
    return [verdict, *_formats(optional)]


def _formats(requirements: list[Requirement]) -> list[Finding]:
    """The packages that read DICOM, NRRD and MetaImage. Nothing else needs them."""
    if not requirements:
        return []
    wrong, found = _compared(requirements)
    if not wrong:
        return [Finding("formats", GOOD, f"DICOM, NRRD and MetaImage: {', '.join(found)}")]
    text = f"DICOM, NRRD or MetaImage files may not be read: {'; '.join(wrong)}"
    return [Finding("formats", POOR, text, "pip install 'fusionseg[formats]', if your data are not NIfTI")]


def _compared(requirements: list[Requirement]) -> tuple[list[str], list[str]]:
    """Packages that are missing or have another version, and packages with their versions."""
    wrong, found = [], []
    for requirement in requirements:
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        found.append(f"{requirement.name} {installed}")
        if not requirement.specifier.contains(installed.split("+")[0], prereleases=True):
            wrong.append(f"{requirement.name} {installed} is not {requirement.specifier}")
    return wrong, found


def _torch() -> list[Finding]:
    driver = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()
    if torch.cuda.is_available():
        return [Finding("CUDA", GOOD, f"torch for CUDA {torch.version.cuda}, NCCL {_nccl()}")]
    if not driver:
        return [Finding("CUDA", POOR, "no NVIDIA GPU and no driver: training runs on the CPU")]
    if torch.version.cuda is None:
        remedy = "install the CUDA build of torch from PyPI: pip install -c constraints.txt torch"
        return [
            Finding("CUDA", BAD, f"an NVIDIA driver is installed, but torch {torch.__version__} is a CPU build", remedy)
        ]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    remedy = (
        "CUDA_VISIBLE_DEVICES is empty: ask the scheduler for a GPU (--gres=gpu:1)"
        if hidden == ""
        else f"see nvidia-smi: the driver may be too old for CUDA {torch.version.cuda}"
    )
    return [Finding("CUDA", BAD, "an NVIDIA driver is installed, but torch sees no GPU", remedy)]


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
    """Each visible GPU by its UUID; then driver and links, as nvidia-smi prints them."""
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        used = 1 - free / total
        found.append(
            Finding(
                f"GPU {index}",
                POOR if used > 0.1 else GOOD,
                f"{properties.name}, GPU-{properties.uuid}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free",
                "another program uses it: see nvidia-smi" if used > 0.1 else "",
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
    """Write speed, file locks and clock of the file system of the runs."""
    existing = _existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".fusionseg-doctor-") as file:
            block = os.urandom(1 << 20)  # random bytes, since some file systems compress zeros
            start = time.perf_counter()
            for _ in range(_WRITE_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            speed = _WRITE_BYTES / 1e9 / (time.perf_counter() - start)
            ahead = os.stat(file.name).st_mtime - time.time()
            locks = _can_lock(file.fileno())
    except OSError as error:
        remedy = "choose another folder: output=FOLDER for runs, --folder for this command"
        return [Finding("file system", BAD, f"cannot write in {existing}: {error.strerror}", remedy)]
    free = shutil.disk_usage(existing).free / 1e9
    remedies = []
    if speed < 0.1:
        remedies.append(
            f"a checkpoint of 1 GB takes {1 / speed:.0f} s: raise checkpoint.every and the profile's signal_s"
        )
    if free < 5:
        remedies.append("nearly full: free some space, or choose another output")
    if abs(ahead) > _SKEW_S:
        remedies.append(
            f"its clock differs from this machine's by {ahead:+.1f} s: ask the administrators to set it (NTP)"
        )
    if not locks:
        remedies.append("it has no file locks: never start a run twice at the same time")
    text = f"{existing}: writes {speed:.2f} GB/s, {free:.0f} GB free, locks {'work' if locks else 'do not work'}"
    return [Finding("file system", POOR if remedies else GOOD, text, "; ".join(remedies))]


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest existing folder above it."""
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def _can_lock(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _slurm() -> list[Finding]:
    """SLURM: whether it answers, and whether it signals a job before a preemption."""
    if shutil.which("sinfo") is None:
        return [Finding("SLURM", POOR, "not installed: `fusionseg submit` needs a profile with cluster: local")]
    try:
        release = call(["sinfo", "--version"]).strip()
        call(["scontrol", "ping"])
        settings = call(["scontrol", "show", "config"])
    except UserError as error:
        return [Finding("SLURM", BAD, str(error), "use a login or compute node; check that slurmctld is running")]
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
                "preempted jobs are requeued without the signal that they ask for (send_user_signal)",
                "keep checkpoint.every small: a preempted run saves only if its partition has a grace time (SIGTERM),"
                " otherwise it continues from its last regular checkpoint",
            )
        )
    if known.get("JobRequeue") == "0":
        found.append(
            Finding("requeue", GOOD, "off by default on this cluster; cluster profiles turn it on (requeue: true)")
        )
    return found


def _allocation() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f", in job {job} on {os.environ.get('SLURM_JOB_NODELIST')}" if job else ""


def _ranks(world: World, folder: Path) -> list[Finding]:
    """A line for each rank, with its clock, and the bandwidth between the ranks."""
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
    world.all_gather_object(None)  # a barrier: all ranks read their clocks at nearly the same time
    own["sees"] = shared.exists()
    own["clock"] = time.time()
    ranks: list[dict[str, Any]] = world.all_gather_object(own)
    bandwidth = _REDUCE_BYTES / 1e9 / all_reduce_seconds(world, _REDUCE_BYTES)
    smallest_s = all_reduce_seconds(world, 4, repeats=20)
    if not world.is_rank_zero:
        return []
    shared.unlink(missing_ok=True)
    found = []
    for rank, info in enumerate(ranks):
        skew = info["clock"] - ranks[0]["clock"]
        remedies = []
        if abs(skew) > _SKEW_S:
            remedies.append(f"its clock differs from rank 0's by {skew:+.1f} s: ask the administrators to set it (NTP)")
        if not info["sees"]:
            remedies.append(
                f"it does not see a file that rank 0 wrote in {existing}: put `output` on a file system that all nodes"
                " share"
            )
        text = (
            f"{info['host']}, {info['device']}, {info['cpus']} CPUs, {info['gb']:.1f} GB free,"
            f" clock {skew * 1e3:+.0f} ms"
        )
        found.append(Finding(f"rank {rank}", BAD if remedies else GOOD, text, "; ".join(remedies)))
    backend = "NCCL" if world.device.type == "cuda" else "gloo"
    slow = bandwidth < (1.0 if world.device.type == "cuda" else 0.1)
    remedy = "set NCCL_SOCKET_IFNAME (CPU: GLOO_SOCKET_IFNAME) to the fast network, such as ib0" if slow else ""
    found.append(
        Finding(
            "all-reduce",
            POOR if slow else GOOD,
            f"{backend}, {world.size} ranks, {_REDUCE_BYTES >> 20} MB: {bandwidth:.2f} GB/s of each rank's data;"
            f" latency {smallest_s * 1e6:.0f} us",
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
    """Convert the findings to plain values, for JSON."""
    return [asdict(finding) for finding in findings]
