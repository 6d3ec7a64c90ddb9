"""Tables and a picture of the results of the scaling model."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

from fusionseg.observability.progress import duration
from fusionseg.performance.goodput import daly_interval_s, young_interval_s
from fusionseg.performance.machine import machine_line
from fusionseg.utils.files import whole_file
from fusionseg.utils.tables import markdown_table


def scaling_table(result: dict[str, Any]) -> str:
    """Format the predictions for one cluster as a table, with the assumptions above it.

    Args:
        result: predictions and assumptions as JSON values, as profiling/scaling.py writes them.
    """
    work, net, reliability = result["workload"], result["network"], result["reliability"]
    links = [
        f"{net[name]['bytes_per_s'] / 1e9:.3g} GB/s, {net[name]['latency_s'] * 1e6:.3g} us"
        for name in ("inside", "between")
    ]
    head = (
        f"{result['preset']}: {result['about']}\n"
        f"Expected links: inside a node {links[0]}, between nodes {links[1]}. Micro-batch of"
        f" {work['micro_batch']}: {work['micro_batch_s'] * 1e3:.1f} ms, spread {work['spread']:.1%}; gradients"
        f" {work['gradient_bytes'] / 1e6:.0f} MB; all-reduce: {result['algorithm']}. A node fails every"
        f" {reliability['node_mtbf_s'] / 3600:.0f} h, a restart takes {reliability['restart_s']:.0f} s, a checkpoint"
        f" {reliability['checkpoint_s']:.2f} s."
    )
    rows: list[tuple[str, ...]] = [
        ("GPUs", "global batch", "step ms", "stragglers ms", "all-reduce ms", "exposed ms", "efficiency",
         "samples/s", "checkpoint every", "goodput", "useful samples/s"),
    ]  # fmt: skip
    for row in result["rows"]:
        step = row["step"]
        rows.append(
            (
                f"{row['ranks']}",
                f"{row['global_batch']}",
                *(f"{step[key] * 1e3:.2f}" for key in ("total_s", "straggling_s", "all_reduce_s", "exposed_s")),
                f"{row['efficiency']:.1%}",
                _speed(row["samples_per_s"]),
                duration(row["interval_s"]) if isfinite(row["interval_s"]) else "never",
                f"{row['goodput']:.2%}",
                _speed(row["useful_samples_per_s"]),
            )
        )
    last = result["rows"][-1]
    saving, mtbf = reliability["checkpoint_s"], reliability["node_mtbf_s"] / last["nodes"]
    if not isfinite(mtbf):
        return f"{head}\n\n{markdown_table(rows)}"
    optimum = (
        f"On {last['ranks']} GPUs the mean time between failures is {duration(mtbf)}. The best interval between"
        f" checkpoints is {duration(young_interval_s(saving, mtbf))} by Young's formula and"
        f" {duration(daly_interval_s(saving, mtbf))} by Daly's."
    )
    return f"{head}\n\n{markdown_table(rows)}\n\n{optimum}"


def _speed(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def draw_efficiency(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the efficiency, and the efficiency times the goodput, over the number of GPUs.

    Args:
        results: predictions, one for each cluster.
        path: path of the picture; the ending decides the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for result in results:
        ranks = [row["ranks"] for row in result["rows"]]
        axes[0].plot(ranks, [row["efficiency"] for row in result["rows"]], marker=".", label=result["preset"])
        axes[1].plot(ranks, [row["efficiency"] * row["goodput"] for row in result["rows"]], marker=".")
    for axis, title in zip(axes, ("efficiency", "efficiency x goodput"), strict=True):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set_ylim(0, 1.05)
        axis.set_xlabel("GPUs")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)


def check_table(result: dict[str, Any]) -> str:
    """Format predictions and measurements of several numbers of processes as a table.

    Args:
        result: result of `profiling/scaling.py --measure` as JSON values.
    """
    rows: list[tuple[str, ...]] = [
        ("processes", "compute ms", "spread", "slowest / mean", "predicted", "latency us", "GB/s",
         "predicted ms, full overlap", "predicted ms, no overlap", "measured ms", "error without overlap"),
    ]  # fmt: skip
    for row in result["rows"]:
        work, link = row["workload"], row["link"]
        rows.append(
            (
                f"{row['processes']}",
                f"{(work['micro_batch_s'] + work['optimizer_s']) * 1e3:.1f}",
                f"{work['spread']:.1%}",
                f"{row['slowest']:.3f}",
                f"{row['expected_slowest']:.3f}",
                *((f"{link['latency_s'] * 1e6:.0f}", f"{link['bytes_per_s'] / 1e9:.2f}") if link else ("", "")),
                f"{row['hidden_s'] * 1e3:.1f}",
                f"{row['added_s'] * 1e3:.1f}",
                f"{row['measured_s'] * 1e3:.1f}",
                f"{row['error']:+.0%}",
            )
        )
    line = machine_line(result["machine"])
    return f"gloo, one thread per process, {result['turns']} rounds; {line}\n\n{markdown_table(rows)}"
