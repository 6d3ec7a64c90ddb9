"""How long a training step takes on many GPUs, by a model: what it costs to be many, and what that leaves.

A step on N ranks is the slowest rank's computing, the part of the all-reduce that the backward pass does not hide, and
the optimizer. docs/scaling.md has the assumptions; all times are seconds, all sizes bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2, sqrt
from typing import Literal

from fusionseg.performance.goodput import best_interval_s, goodput

Algorithm = Literal["ring", "hierarchical", "tree", "best"]
Distribution = Literal["normal", "lognormal"]

FIRST_BUCKET_BYTES = 1 << 20  # of DistributedDataParallel; the others have bucket_cap_mb
_LOSS_BYTES = 4  # the step's own reduction, which tells all ranks whether it is finite


@dataclass(frozen=True)
class Link:
    """What a message takes on a way: latency + size / bandwidth (Hockney, 1994)."""

    bytes_per_s: float
    """In one direction."""
    latency_s: float


@dataclass(frozen=True)
class Network:
    """Nodes that are alike, each with its GPUs."""

    gpus_per_node: int
    inside: Link
    """From GPU to GPU; each has one of its own."""
    between: Link
    """From node to node: all adapters of a node together, which its GPUs share."""
    start_s: float = 0.0
    """Of each collective, before anything moves."""

    def nodes(self, ranks: int) -> int:
        return ceil(ranks / self.gpus_per_node)


@dataclass(frozen=True)
class Workload:
    """A training, as one device sees it."""

    micro_batch_s: float
    """Data, forward and backward of a micro-batch."""
    gradient_bytes: float
    """Of all gradients, which are float32 here."""
    optimizer_s: float = 0.0
    """Of the optimizer, once a step."""
    micro_batch: int = 1
    """Samples."""
    backward_share: float = 2 / 3
    """Of micro_batch_s: backward multiplies twice as often as forward."""
    overlap: float = 1.0
    """The speed at which the backward pass goes on while a bucket is under way: 1 undisturbed, 0 not at all."""
    bucket_bytes: float = 25 * 2**20
    """DistributedDataParallel's default."""
    spread: float = 0.0
    """Standard deviation of micro_batch_s over its mean, from rank to rank and from one to the next."""
    distribution: Distribution = "lognormal"
    """How micro_batch_s scatters."""


@dataclass(frozen=True)
class Reliability:
    """What fails, and what saving costs."""

    node_mtbf_s: float
    """Mean time between failures of one node; inf is never."""
    restart_s: float
    """From a failure to the next step."""
    checkpoint_s: float
    """For which a save stops the training."""
    interval_s: float | None = None
    """Training between two checkpoints; None is the best for each number of nodes."""


@dataclass(frozen=True)
class StepTime:
    """The parts of a step."""

    compute_s: float
    """Mean of a rank, the optimizer included."""
    straggling_s: float
    """What the slowest rank takes longer, on average."""
    all_reduce_s: float
    """All communication, hidden or not."""
    exposed_s: float
    """Communication for which the devices wait."""

    @property
    def total_s(self) -> float:
        return self.compute_s + self.straggling_s + self.exposed_s


@dataclass(frozen=True)
class Scale:
    """A training on a number of ranks."""

    ranks: int
    nodes: int
    global_batch: int
    accumulation_steps: int
    step: StepTime
    samples_per_s: float
    efficiency: float
    """Samples per second and rank, against one rank with the same global batch (fixed) or accumulation (growing)."""
    interval_s: float
    """Between checkpoints."""
    goodput: float
    """Share of the wall time that is training which is kept."""
    useful_samples_per_s: float


def ring_s(size: float, ranks: int, link: Link) -> float:
    """All-reduce on a ring: 2 (N - 1) messages of size / N each (Patarasuk and Yuan, 2009)."""
    return 2 * (ranks - 1) * (link.latency_s + size / ranks / link.bytes_per_s)


def tree_s(size: float, ranks: int, link: Link) -> float:
    """All-reduce on two binary trees with half of the data each: up and down (Sanders, Speck and Träff, 2009)."""
    return 2 * (ceil(log2(ranks)) * link.latency_s + size / link.bytes_per_s) if ranks > 1 else 0.0


def all_reduce_s(size: float, ranks: int, network: Network, algorithm: Algorithm = "best") -> float:
    """Seconds of an all-reduce over the first `ranks` GPUs, node after node.

    Args:
        algorithm: ring: one ring through all ranks, with the bandwidth of its slowest link and the latency of each
            link that it passes (as in NCCL's src/graph/tuning.cc); hierarchical: reduced and scattered inside the
            nodes, the slices all-reduced between them on rings, gathered inside; tree: the same with trees between
            the nodes; best: whichever is fastest, as NCCL chooses.
    """
    if ranks <= 1:
        return 0.0
    inside, between = network.inside, network.between
    local, nodes = min(ranks, network.gpus_per_node), network.nodes(ranks)
    if nodes == 1:
        return network.start_s + ring_s(size, ranks, inside)
    slowest = between.bytes_per_s if local == 1 else min(inside.bytes_per_s, between.bytes_per_s)
    latency_s = 2 * ((ranks - nodes) * inside.latency_s + (nodes - 1) * between.latency_s)
    within = ring_s(size, local, inside)  # scattering and gathering are half a ring each
    times = {
        "ring": latency_s + ring_s(size, ranks, Link(slowest, 0.0)),
        "hierarchical": within + ring_s(size, nodes, between),
        "tree": within + tree_s(size, nodes, between),
    }
    return network.start_s + (min(times.values()) if algorithm == "best" else times[algorithm])


def fit_link(sizes: Sequence[float], seconds: Sequence[float], ranks: int) -> Link:
    """The link of the ring that would take these times for these sizes: least squares of the relative errors.

    Args:
        ranks: of the measured all-reduces; at least 2.
    """
    import numpy as np

    slope, start = np.polyfit(sizes, seconds, 1, w=1 / np.asarray(seconds))
    hops = 2 * (ranks - 1)
    return Link(bytes_per_s=hops / ranks / max(float(slope), 1e-15), latency_s=max(float(start), 0.0) / hops)


def buckets(size: float, bucket_bytes: float) -> list[float]:
    """The gradients as DistributedDataParallel sends them, in the order in which they are ready: a small one first."""
    sizes = [min(size, FIRST_BUCKET_BYTES, bucket_bytes)]
    while (rest := size - sum(sizes)) > 1e-6 * size:
        sizes.append(min(rest, bucket_bytes))
    return sizes


def exposed_s(backward_s: float, sizes: Sequence[float], seconds: Sequence[float], overlap: float) -> float:
    """For how long the all-reduce goes on after where the backward pass alone would have ended.

    Buckets become ready in proportion to their bytes, and are sent one after the other.

    Args:
        sizes: of the buckets.
        seconds: of their all-reduces.
        overlap: the speed of the backward pass while a bucket is under way.
    """
    now = done = ready = 0.0  # done and ready: seconds of the backward pass alone
    for size, takes in zip(sizes, seconds, strict=True):
        ready += backward_s * size / sum(sizes)
        if done < ready:
            now, done = now + ready - done, ready
        now, done = now + takes, min(backward_s, done + overlap * takes)
    return max(0.0, now - done)


def expected_slowest(ranks: int, spread: float, distribution: Distribution = "lognormal") -> float:
    """Expected maximum of independent times of mean 1 and standard deviation `spread`, one of each rank.

    It is the integral of x dF(x)^N, over the quantiles z of a standard normal: F^N has the density N Phi(z)^(N-1)
    phi(z) there, and x is 1 + spread z, or the log-normal exp(s z - s^2 / 2) with s^2 = log(1 + spread^2).
    """
    if ranks <= 1 or spread == 0:
        return 1.0
    import numpy as np
    from scipy.special import log_ndtr  # scipy is slow to import

    z, step = np.linspace(-12, 20, 64001, retstep=True)
    density = ranks * np.exp((ranks - 1) * log_ndtr(z) - z**2 / 2) / sqrt(2 * np.pi)
    s2 = np.log1p(spread**2)
    times = 1 + spread * z if distribution == "normal" else np.exp(sqrt(s2) * z - s2 / 2)
    return float((times * density).sum() * step)


def step_time(
    workload: Workload, ranks: int, accumulation_steps: int, network: Network, algorithm: Algorithm = "best"
) -> StepTime:
    """The parts of an optimizer step of `accumulation_steps` micro-batches on each rank."""
    computing = accumulation_steps * workload.micro_batch_s
    # Of independent micro-batches the variances add up; the sum of log-normals is taken for one (Fenton, 1960).
    slowest = expected_slowest(ranks, workload.spread / sqrt(accumulation_steps), workload.distribution)
    if ranks == 1:
        return StepTime(computing + workload.optimizer_s, 0.0, 0.0, 0.0)
    sizes = buckets(workload.gradient_bytes, workload.bucket_bytes)
    seconds = [all_reduce_s(size, ranks, network, algorithm) for size in sizes]
    loss_s = all_reduce_s(_LOSS_BYTES, ranks, network, algorithm)
    backward_s = workload.backward_share * workload.micro_batch_s  # of the last micro-batch alone
    return StepTime(
        compute_s=computing + workload.optimizer_s,
        straggling_s=computing * (slowest - 1),
        all_reduce_s=sum(seconds) + loss_s,
        exposed_s=exposed_s(backward_s, sizes, seconds, workload.overlap) + loss_s,
    )


def scale(
    workload: Workload,
    network: Network,
    reliability: Reliability,
    ranks: int,
    *,
    accumulation_steps: int = 1,
    global_batch: int | None = None,
    algorithm: Algorithm = "best",
) -> Scale:
    """The training on `ranks` GPUs.

    Args:
        accumulation_steps: micro-batches of a rank in a step; the global batch grows with the ranks (weak scaling).
        global_batch: samples of a step, if they are to stay the same (strong scaling); `accumulation_steps` follows.
            Must be a multiple of micro-batch times ranks.
    """
    alone = accumulation_steps if global_batch is None else global_batch // workload.micro_batch
    own = accumulation_steps if global_batch is None else alone // ranks
    step = step_time(workload, ranks, own, network, algorithm)
    samples = own * ranks * workload.micro_batch
    speed = samples / step.total_s
    single = alone * workload.micro_batch / step_time(workload, 1, alone, network).total_s
    nodes = network.nodes(ranks)
    mtbf_s, saving_s = reliability.node_mtbf_s / nodes, reliability.checkpoint_s
    interval_s = reliability.interval_s or best_interval_s(saving_s, mtbf_s)
    share = goodput(interval_s, checkpoint_s=saving_s, mtbf_s=mtbf_s, restart_s=reliability.restart_s)
    return Scale(ranks, nodes, samples, own, step, speed, speed / ranks / single, interval_s, share, share * speed)


def possible_ranks(counts: Sequence[int], micro_batch: int, global_batch: int | None) -> list[int]:
    """Those of some numbers of ranks over which a fixed global batch can be dealt; all, if it grows with them."""
    return [n for n in counts if global_batch is None or global_batch % (micro_batch * n) == 0]
