"""Inputs of the scaling model: clusters from data sheets, and workloads from the records of finished runs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

from fusionseg.performance.scaling_model import Link, Network, Reliability, Workload
from fusionseg.runs.environment import read_environment
from fusionseg.runs.paths import RunPaths
from fusionseg.runs.records import RecordKind, read_records
from fusionseg.runs.run_config import load_run_config
from fusionseg.utils.errors import UserError

REACHED = 0.78
"""Share of a link's data-sheet bandwidth that is reached. NCCL assumes 235 of the 300 GB/s of an A100's NVLink
(src/graph/tuning.cc); the same share is assumed for all links."""
SHARE_OF_BOUND = 0.5
"""Assumed ratio of the bound of profiling/roofline.py to the real step time on a GPU."""
NCCL_START_S = 8.4e-6  # start of a ring, from src/graph/tuning.cc, like the latencies of NVLink, PCIe, InfiniBand below
STORAGE_BYTES_PER_S = 1e9  # assumed, for checkpoints
GRADIENT_BYTES = 4 * 44_700_074  # parse_fusion_od: `fusionseg models --config configs/parse_fusion_od.yaml`


@dataclass(frozen=True)
class Preset:
    """A kind of cluster. Bandwidths are data-sheet values in one direction."""

    about: str
    network: Network
    tflops: float
    """Dense matrix throughput of a GPU in 10^12 operations per second, for the precision of `train.precision: auto`."""
    memory_gbs: float
    """Memory bandwidth of a GPU in GB/s."""
    bound_s: float
    """Roofline bound of a micro-batch of parse_fusion_od with these rates (profiling/roofline.py --other)."""

    @property
    def workload(self) -> Workload:
        """Expected workload of parse_fusion_od on such a GPU."""
        return Workload(
            micro_batch_s=self.bound_s / SHARE_OF_BOUND, gradient_bytes=GRADIENT_BYTES, spread=0.03, overlap=0.95
        )

    @property
    def reachable(self) -> Network:
        """Network with the bandwidths that are expected in practice."""
        return replace(self.network, inside=_reduced(self.network.inside), between=_reduced(self.network.between))


def _reduced(link: Link) -> Link:
    return replace(link, bytes_per_s=REACHED * link.bytes_per_s)


PRESETS = {
    "t4_10gbe": Preset(
        "4 T4 in a node (PCIe 3.0 x16), 10 Gbit/s Ethernet",
        Network(4, Link(15.75e9, 5.7e-6), Link(1.25e9, 50e-6), NCCL_START_S),
        tflops=65,
        memory_gbs=320,
        bound_s=0.270,
    ),
    "a100_100gbe": Preset(
        "8 A100 80 GB in a node (NVLink 3, 300 GB/s each way), 100 Gbit/s Ethernet",
        Network(8, Link(300e9, 3.4e-6), Link(12.5e9, 50e-6), NCCL_START_S),
        tflops=312,
        memory_gbs=2039,
        bound_s=0.0439,
    ),
    "a100_hdr": Preset(
        "8 A100 80 GB in a node (NVLink 3), 8 HDR InfiniBand adapters of 200 Gbit/s (DGX A100)",
        Network(8, Link(300e9, 3.4e-6), Link(8 * 25e9, 9.6e-6), NCCL_START_S),
        tflops=312,
        memory_gbs=2039,
        bound_s=0.0439,
    ),
    "h100_ndr": Preset(
        "8 H100 SXM in a node (NVLink 4, 450 GB/s each way), 8 NDR InfiniBand adapters of 400 Gbit/s (DGX H100)",
        Network(8, Link(450e9, 3.4e-6), Link(8 * 50e9, 9.6e-6), NCCL_START_S),
        tflops=989,
        memory_gbs=3350,
        bound_s=0.0250,
    ),
}

# 419 unexpected interruptions in 54 days on 16384 H100s, which are 2048 nodes ("The Llama 3 herd of models", 2024).
NODE_MTBF_S = 54 * 86400 * 2048 / 419
RESTART_S = 300.0  # assumed: waiting in the queue, starting the ranks, loading cache and checkpoint


def default_reliability(gradient_bytes: float) -> Reliability:
    """Assumed reliability of a cluster, with NODE_MTBF_S and RESTART_S.

    Args:
        gradient_bytes: size of all gradients. A checkpoint is three times as large: weights and two moments of AdamW.
    """
    return Reliability(NODE_MTBF_S, RESTART_S, checkpoint_s=3 * gradient_bytes / STORAGE_BYTES_PER_S)


def workload_of_run(run: Path) -> Workload:
    """Estimate the workload of a run from its records: median and spread of the step time.

    A record is a mean over `log.every` steps. Steps are assumed independent, so the spread of one step is that of the
    records times the square root of `log.every`. The whole step counts as forward and backward.

    Args:
        run: run folder.

    Raises:
        UserError: the folder is no run folder, has too few records, or ran on several ranks, whose step times include
            communication.
    """
    config = load_run_config(run)
    paths, environment = RunPaths(run), read_environment(run)
    problems = []
    ranks = environment.get("world_size")
    if ranks != 1:
        problems.append(
            f"{paths.environment}: world_size: step times of several ranks include communication"
            f" (expected 1, got {ranks}); give a run on one rank"
        )
    trained = [record for record in read_records(run) if record["kind"] == RecordKind.TRAIN]
    times = [record["step_s"] for record in trained if record.get("step_s") is not None][1:]  # the first warms up
    if len(times) < 3:
        problems.append(
            f"{paths.metrics}: too few train records (expected at least 4, got {len(times) + 1}); train longer"
        )
    parameters = environment.get("parameters")
    if not isinstance(parameters, int):
        problems.append(
            f"{paths.environment}: parameters: the number of parameters is missing; give a run of this version"
        )
    if problems:
        raise UserError(problems)
    accumulation_steps = config.train.global_batch // config.train.micro_batch_samples
    step_s = statistics.median(times)
    return Workload(
        micro_batch_s=step_s / accumulation_steps,
        gradient_bytes=4 * int(parameters or 0),
        micro_batch=config.train.micro_batch_samples,
        spread=statistics.stdev(times) / step_s * sqrt(config.log.every * accumulation_steps),
    )
