"""The sizes of a sweep's networks, and a warning where they differ much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusionseg.cluster.sweep import MAX_NAMED, SweepRun
from fusionseg.config.yaml_location import dump_yaml
from fusionseg.runs.cases.datasets import open_datasets
from fusionseg.training.network import count_parameters
from fusionseg.utils.errors import some_of

FACTOR = 4
"""The ratio of the largest to the smallest number of parameters above which a sweep gets a warning."""


def network_sizes(runs: Sequence[SweepRun]) -> dict[str, int]:
    """Count the parameters of each run's network. The networks are built on the meta device, without memory.

    Args:
        runs: the runs of a sweep.

    Returns:
        The number of parameters, by the run's name.

    Raises:
        UserError: a data set, which gives the numbers of channels and outputs, does not exist.
    """
    widths: dict[str, tuple[int, int]] = {}
    sizes: dict[str, int] = {}
    for run in runs:
        key = dump_yaml({"data": run.config.to_dict()["data"], "labels": run.config.task_info.needs_labels})
        if key not in widths:
            dataset = open_datasets(run.config)[0].dataset
            widths[key] = len(dataset.channels), dataset.scheme.num_outputs
        channels, outputs = widths[key]
        sizes[run.config.name] = count_parameters(run.config, in_channels=channels, out_channels=outputs)
    return sizes


def size_remarks(runs: Sequence[SweepRun], sizes: Mapping[str, int]) -> list[str]:
    """Write remarks for a comparison: keys that a changed name dropped, and networks of very different sizes.

    Args:
        runs: the runs of a sweep.
        sizes: the number of parameters, by the run's name.
    """
    dropped: dict[str, list[str]] = {}
    for run in runs:
        for entry in run.dropped:
            dropped.setdefault(str(entry), []).append(run.config.name)
    remarks = [f"{text} [{some_of(names, MAX_NAMED)}]" for text, names in dropped.items()]
    smallest, largest = min(sizes, key=lambda name: sizes[name]), max(sizes, key=lambda name: sizes[name])
    if sizes[largest] > FACTOR * sizes[smallest]:
        remarks.append(
            f"warning: the networks differ in size by a factor of {sizes[largest] / sizes[smallest]:.0f}:"
            f" {size_text(sizes[smallest])} parameters ({smallest}) to {size_text(sizes[largest])} ({largest}); a"
            " comparison measures the size too: choose widths that make the sizes alike, unless this is intended"
        )
    return remarks


def size_text(parameters: int) -> str:
    """Format a number of parameters for a table: 44.70 M, or 4,321."""
    return f"{parameters / 1e6:.2f} M" if parameters >= 100_000 else f"{parameters:,}"
