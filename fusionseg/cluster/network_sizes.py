"""The sizes of a sweep's networks, and a warning where they differ much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusionseg.cluster.sweep import SweepRun, some
from fusionseg.config.yaml_location import dump_yaml
from fusionseg.runs.datasets import open_datasets
from fusionseg.training.network import count_parameters

FACTOR = 4
"""Networks that differ by more in their parameters are remarked upon."""


def network_sizes(runs: Sequence[SweepRun]) -> dict[str, int]:
    """Parameters of each run's network, by the run's name. Nothing is computed: the networks are built without memory.

    Raises:
        UserError: a data set, which says how many channels and classes there are, is not there.
    """
    widths: dict[str, tuple[int, int]] = {}
    sizes: dict[str, int] = {}
    for run in runs:
        key = dump_yaml({"data": run.config.to_dict()["data"], "labels": run.config.pretrain is None})
        if key not in widths:
            dataset = open_datasets(run.config)[0][1]
            widths[key] = len(dataset.channels), dataset.num_classes
        channels, classes = widths[key]
        sizes[run.config.name] = count_parameters(run.config, in_channels=channels, out_channels=classes)
    return sizes


def size_remarks(runs: Sequence[SweepRun], sizes: Mapping[str, int]) -> list[str]:
    """Remarks for a reader of the results: keys that a change of name has dropped, and networks of other sizes."""
    dropped: dict[str, list[str]] = {}
    for run in runs:
        for entry in run.dropped:
            dropped.setdefault(str(entry), []).append(run.config.name)
    remarks = [f"{text} [{some(names)}]" for text, names in dropped.items()]
    smallest, largest = min(sizes, key=lambda name: sizes[name]), max(sizes, key=lambda name: sizes[name])
    if sizes[largest] > FACTOR * sizes[smallest]:
        remarks.append(
            f"warning: the networks differ in size by a factor of {sizes[largest] / sizes[smallest]:.0f}:"
            f" {size_text(sizes[smallest])} parameters ({smallest}) to {size_text(sizes[largest])} ({largest}). A"
            " comparison of them compares their sizes too: if that is not meant, give them widths that make them alike"
        )
    return remarks


def size_text(parameters: int) -> str:
    """Such as 44.70 M, or 4,321."""
    return f"{parameters / 1e6:.2f} M" if parameters >= 100_000 else f"{parameters:,}"
