"""What to do about a summary of the GPU monitor: few lines, and none when all is well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MIN_SAMPLES = 10
"""Below, a mean says more of the start than of the run."""
BUSY_PERCENT = 90.0
"""A GPU that is fed well is busy above this; the rest are the gaps between kernels, logging and checkpoints."""
DATA_SHARE = 0.1
"""Waiting for data below this share of a step costs less than what else is to be gained."""
ROOMY_SHARE = 0.5
"""Up to this share of the memory in use, twice the micro-batch is likely to fit."""
FULL_SHARE = 0.95
"""What is left is within what the driver keeps for itself (2.6 % of a T4 is in the total and never used), and what
fragmentation and the libraries' workspaces vary by."""
POWER_SHARE = 0.2
"""The power limit is met in bursts at full load by every card; as a steady state it costs speed."""
HEAT_SHARE = 0.05
"""A card that is cooled as it should be never slows down for heat; a few samples may follow a start."""
SETTING_SHARE = 0.5
"""Clocks that are set low are low nearly always."""


def advise(
    summary: dict[str, Any],
    *,
    data_share: float | None = None,
    cache_on_host: bool = False,
    micro_batch: int | None = None,
) -> list[str]:
    """What could be done about it, the gravest first.

    Args:
        summary: of GpuMonitor.stop.
        data_share: share of a step's time that goes into data (data_s / step_s); None if it is not known.
        cache_on_host: whether the prepared volumes lie in the host's memory.
        micro_batch: of the run; None if there is none.
    """
    gpus = summary["gpus"]
    lines = [line for gpu in gpus for line in _defects(gpu)]
    known = [gpu for gpu in gpus if gpu["samples"] >= MIN_SAMPLES]
    lines += _slowed(known)
    lines += _full(known, cache_on_host, micro_batch)
    return lines + list(_use(known, data_share, cache_on_host, micro_batch))


def _defects(gpu: dict[str, Any]) -> Iterator[str]:
    """What is broken: it counts however few the samples."""
    if gpu["lost"]:
        yield f"{_name(gpu)} was lost: look for Xid in dmesg, then have it reset, or the node rebooted"
    new, total = gpu["ecc"]["new_uncorrected"], gpu["ecc"]["uncorrected"]
    if new:
        yield (
            f"{_name(gpu)}: {new} uncorrected memory errors during the run: do not trust what was computed since; go"
            " back to an earlier checkpoint on another GPU, and report this one (nvidia-smi -q -d ECC)"
        )
    elif total:
        yield (
            f"{_name(gpu)}: {total} uncorrected memory errors since its driver was loaded, none in this run: have it"
            " reset (nvidia-smi -q -d ECC)"
        )


def _slowed(gpus: list[dict[str, Any]]) -> list[str]:
    """What holds the clocks down; GPUs with the same trouble share a line."""
    lines = []
    for reasons, least, what, remedy in (
        (
            ("thermal", "hw_thermal"),
            HEAT_SHARE,
            "throttled by heat",
            "see to its air, fans and room, or ask the administrators; a lower power limit keeps it cooler",
        ),
        (
            ("power_brake",),
            HEAT_SHARE,
            "braked by the power supply",
            "the node's supplies or cables do not suffice: tell the administrators",
        ),
        (
            ("hw_slowdown",),
            HEAT_SHARE,
            "slowed down by its hardware",
            "too hot or too little power: look at nvidia-smi -q -d PERFORMANCE, tell the administrators",
        ),
        (
            ("power",),
            POWER_SHARE,
            "throttled by power",
            "it works at its limit; if that was lowered (nvidia-smi -q -d POWER), ask for the default",
        ),
        (
            ("app_clocks",),
            SETTING_SHARE,
            "held to clocks that were set",
            "the administrators can lift them (nvidia-smi -rgc, -rac)",
        ),
    ):
        struck = [(gpu, _share(gpu, reasons)) for gpu in gpus if _share(gpu, reasons) >= least]
        if reasons == ("hw_slowdown",):  # the same bit is set for heat and for the brake: those were named already
            struck = [(gpu, share) for gpu, share in struck if share > _share(gpu, ("hw_thermal", "power_brake"))]
        if struck:
            shares = [100 * share for _, share in struck]
            detail = _detail([gpu for gpu, _ in struck], reasons[0])
            lines.append(f"{_names(struck)} {what} in {_span(shares)} % of the samples{detail}: {remedy}")
    return lines


def _full(gpus: list[dict[str, Any]], cache_on_host: bool, micro_batch: int | None) -> Iterator[str]:
    full = [(gpu, _memory_share(gpu)) for gpu in gpus if _memory_share(gpu) >= FULL_SHARE]
    if full:
        ways = [] if micro_batch == 1 else [f"lower train.micro_batch{_now(micro_batch)}"]
        ways += [] if cache_on_host else ["set cache.device=host"]
        ways.append("for a Swin network set train.checkpoint_activations=true")
        share = _span([100 * share for _, share in full])
        yield f"{_names(full)}: memory {share} % full, and the next larger need ends the run: {', or '.join(ways)}"


def _use(
    gpus: list[dict[str, Any]], data_share: float | None, cache_on_host: bool, micro_batch: int | None
) -> Iterator[str]:
    """Whether the GPUs are kept busy. One line for all: in a training they wait for each other."""
    measured = [gpu["busy_percent"] for gpu in gpus if gpu["busy_percent"] is not None]
    if not measured or (busy := sum(measured) / len(measured)) >= BUSY_PERCENT:
        return
    found = f"{'GPUs' if len(measured) > 1 else 'GPU'} {busy:.0f} % busy"
    if data_share is None:
        yield f"{found}: in a training, compare data_s with step_s in metrics.jsonl to see whether it waits for data"
        return
    found += f", {100 * data_share:.0f} % of the step waits for data"
    if data_share >= DATA_SHARE and cache_on_host:
        yield f"{found}: cache on the device (cache.device=accelerator)"
    elif data_share >= DATA_SHARE:
        yield f"{found}: raise train.micro_batch{_now(micro_batch)}, or do without augment.elastic and augment.rotate"
    elif (shares := [_memory_share(gpu) for gpu in gpus if gpu["memory_used_gb"]]) and max(shares) <= ROOMY_SHARE:
        yield (
            f"{found}, {100 * max(shares):.0f} % of the memory is in use:"
            f" raise train.micro_batch{_now(micro_batch)}, or set train.compile=true"
        )
    else:
        yield f"{found}: set train.compile=true; small kernels leave gaps that it closes"


def _now(micro_batch: int | None) -> str:
    return "" if micro_batch is None else f" (now {micro_batch})"


def _share(gpu: dict[str, Any], reasons: tuple[str, ...]) -> float:
    # The largest, not the sum: one sample may have several reasons.
    return max(float(gpu["throttled"].get(reason, 0.0)) for reason in reasons)


def _memory_share(gpu: dict[str, Any]) -> float:
    used, total = gpu["memory_used_gb"], gpu["memory_total_gb"]
    return float(used / total) if used and total else 0.0


def _detail(gpus: list[dict[str, Any]], reason: str) -> str:
    field, what, unit = {
        "thermal": ("temperature_c", "up to", "°C"),
        "power": ("power_limit_w", "limit", "W"),
        "app_clocks": ("sm_clock_mhz", "mean", "MHz"),
    }.get(reason, ("", "", ""))
    values = [gpu[field] for gpu in gpus if field and gpu[field] is not None]
    return f" ({what} {_span(values)} {unit})" if values else ""


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def _name(gpu: dict[str, Any]) -> str:
    return f"GPU {gpu['index']}"


def _names(struck: list[tuple[dict[str, Any], float]]) -> str:
    indices = [gpu["index"] for gpu, _ in struck]
    return f"GPU {indices[0]}" if len(indices) == 1 else f"GPUs {', '.join(indices)}"
