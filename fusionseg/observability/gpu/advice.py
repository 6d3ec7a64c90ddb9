"""Advice on the summary of the GPU monitor: a line for each problem found, none if there is no problem."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MIN_SAMPLES = 10
"""Least number of samples. With fewer, the start of the run dominates the means."""
BUSY_PERCENT = 90.0
"""A GPU that never waits is busy above this; gaps between kernels, logging and checkpoints are the rest."""
DATA_SHARE = 0.1
"""Share of a step spent on data from which the data path is the first thing to improve."""
ROOMY_SHARE = 0.5
"""Share of memory in use up to which a micro-batch of twice the size is likely to fit."""
FULL_SHARE = 0.95
"""Share of memory in use from which the next allocation may fail. The driver reserves a part that is in the total but
never available (2.6 % on a T4), and fragmentation and library workspaces vary by about as much."""
POWER_SHARE = 0.2
"""Share of samples at the power limit. Every card reaches the limit in bursts; only a steady state costs speed."""
HEAT_SHARE = 0.05
"""Share of samples slowed down by heat. A card with proper cooling has none, apart from a few after a start."""
SETTING_SHARE = 0.5
"""Share of samples with lowered application clocks. Clocks that someone set are low nearly all the time."""


def advise(
    summary: dict[str, Any],
    *,
    data_share: float | None = None,
    cache_on_host: bool = False,
    micro_batch: int | None = None,
) -> list[str]:
    """List what can be improved, the most serious problem first.

    Args:
        summary: the result of `GpuMonitor.stop`.
        data_share: share of the step time spent on data (data_s / step_s), 0 to 1; None if unknown.
        cache_on_host: True if the prepared volumes are kept in host memory.
        micro_batch: micro-batch of the run; None outside a training.

    Returns:
        One sentence for each problem; an empty list if there is none.
    """
    gpus = summary["gpus"]
    lines = [line for gpu in gpus for line in _defects(gpu)]
    sampled = [gpu for gpu in gpus if gpu["samples"] >= MIN_SAMPLES]
    lines += _throttling(sampled)
    lines += _full_memory(sampled, cache_on_host, micro_batch)
    return lines + list(_low_utilisation(sampled, data_share, cache_on_host, micro_batch))


def _defects(gpu: dict[str, Any]) -> Iterator[str]:
    """Hardware defects; they are reported for any number of samples."""
    if gpu["lost"]:
        yield f"{_name(gpu)} was lost: look for Xid in dmesg, then have the GPU reset or the node rebooted"
    new, total = gpu["ecc"]["new_uncorrected"], gpu["ecc"]["uncorrected"]
    if new:
        yield (
            f"{_name(gpu)}: {new} uncorrected memory errors during the run: results computed since then may be wrong;"
            " resume from an earlier checkpoint on another GPU, and report this one (nvidia-smi -q -d ECC)"
        )
    elif total:
        yield (
            f"{_name(gpu)}: {total} uncorrected memory errors since its driver was loaded, none in this run: have the"
            " GPU reset (nvidia-smi -q -d ECC)"
        )


def _throttling(gpus: list[dict[str, Any]]) -> list[str]:
    """Reasons for low clocks; GPUs with the same reason share a line."""
    lines = []
    for reasons, threshold, problem, remedy in (
        (
            ("thermal", "hw_thermal"),
            HEAT_SHARE,
            "throttled by heat",
            "check its fans and air flow, or ask the administrators; a lower power limit keeps it cooler",
        ),
        (
            ("power_brake",),
            HEAT_SHARE,
            "throttled by the power supply",
            "the power supplies or cables of the node are insufficient: tell the administrators",
        ),
        (
            ("hw_slowdown",),
            HEAT_SHARE,
            "throttled by its hardware",
            "it is too hot or lacks power: look at nvidia-smi -q -d PERFORMANCE, and tell the administrators",
        ),
        (
            ("power",),
            POWER_SHARE,
            "throttled by power",
            "it runs at its power limit; if the limit was lowered (nvidia-smi -q -d POWER), ask for the default",
        ),
        (
            ("app_clocks",),
            SETTING_SHARE,
            "limited by application clocks",
            "the administrators can reset them (nvidia-smi -rgc, -rac)",
        ),
    ):
        affected = [(gpu, _share(gpu, reasons)) for gpu in gpus if _share(gpu, reasons) >= threshold]
        if reasons == ("hw_slowdown",):  # this bit is also set for heat and for the power brake, reported above
            affected = [(gpu, share) for gpu, share in affected if share > _share(gpu, ("hw_thermal", "power_brake"))]
        if affected:
            shares = [100 * share for _, share in affected]
            detail = _detail([gpu for gpu, _ in affected], reasons[0])
            lines.append(f"{_names(affected)} {problem} in {_value_range(shares)} % of the samples{detail}: {remedy}")
    return lines


def _full_memory(gpus: list[dict[str, Any]], cache_on_host: bool, micro_batch: int | None) -> Iterator[str]:
    full = [(gpu, _memory_share(gpu)) for gpu in gpus if _memory_share(gpu) >= FULL_SHARE]
    if full:
        remedies = [] if micro_batch == 1 else [f"lower train.micro_batch{_current(micro_batch)}"]
        remedies += [] if cache_on_host else ["set cache.device=host"]
        remedies.append("for a Swin network set train.checkpoint_activations=true")
        share = _value_range([100 * share for _, share in full])
        yield f"{_names(full)}: memory {share} % full; a larger allocation may end the run: {', or '.join(remedies)}"


def _low_utilisation(
    gpus: list[dict[str, Any]], data_share: float | None, cache_on_host: bool, micro_batch: int | None
) -> Iterator[str]:
    """Low utilisation, in one line for all GPUs, because in a training they wait for each other."""
    measured = [gpu["busy_percent"] for gpu in gpus if gpu["busy_percent"] is not None]
    if not measured or (busy := sum(measured) / len(measured)) >= BUSY_PERCENT:
        return
    found = f"{'GPUs' if len(measured) > 1 else 'GPU'} {busy:.0f} % busy"
    if data_share is None:
        yield f"{found}: in a training, compare data_s with step_s in the run's records: a large data_s means waiting"
        return
    found += f", {100 * data_share:.0f} % of the step waits for data"
    if data_share >= DATA_SHARE and cache_on_host:
        yield f"{found}: cache on the device (cache.device=accelerator)"
    elif data_share >= DATA_SHARE:
        yield f"{found}: raise train.micro_batch{_current(micro_batch)}, or turn off augment.elastic and augment.rotate"
    elif (shares := [_memory_share(gpu) for gpu in gpus if gpu["memory_used_gb"]]) and max(shares) <= ROOMY_SHARE:
        yield (
            f"{found}, {100 * max(shares):.0f} % of the memory is in use:"
            f" raise train.micro_batch{_current(micro_batch)}, or set train.compile=default"
        )
    else:
        yield f"{found}: set train.compile=default, which fuses small kernels and so removes gaps between them"


def _current(micro_batch: int | None) -> str:
    return "" if micro_batch is None else f" (now {micro_batch})"


def _share(gpu: dict[str, Any], reasons: tuple[str, ...]) -> float:
    # The maximum, not the sum, because one sample may have several reasons.
    return max(float(gpu["throttled"].get(reason, 0.0)) for reason in reasons)


def _memory_share(gpu: dict[str, Any]) -> float:
    used, total = gpu["memory_used_gb"], gpu["memory_total_gb"]
    return float(used / total) if used and total else 0.0


def _detail(gpus: list[dict[str, Any]], reason: str) -> str:
    field, label, unit = {
        "thermal": ("temperature_c", "up to", "°C"),
        "power": ("power_limit_w", "limit", "W"),
        "app_clocks": ("sm_clock_mhz", "mean", "MHz"),
    }.get(reason, ("", "", ""))
    values = [gpu[field] for gpu in gpus if field and gpu[field] is not None]
    return f" ({label} {_value_range(values)} {unit})" if values else ""


def _value_range(values: list[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def _name(gpu: dict[str, Any]) -> str:
    return f"GPU {gpu['index']}"


def _names(affected: list[tuple[dict[str, Any], float]]) -> str:
    indices = [gpu["index"] for gpu, _ in affected]
    return f"GPU {indices[0]}" if len(indices) == 1 else f"GPUs {', '.join(indices)}"
