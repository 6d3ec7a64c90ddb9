"""Model of the time of a training step on many GPUs: stragglers, all-reduce, efficiency, goodput.

The time of a step on N ranks is the compute time of the slowest rank, plus the part of the all-reduce that the backward
pass does not overlap, plus the optimizer. docs/scaling.md lists the assumptions. All times are in seconds, all sizes in
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2, sqrt
from typing import Literal

from fusionseg.performance.goodput import best_interval_s, goodput

Algorithm = Literal["ring", "hierarchical", "tree", "best"]
Distribution = Literal["normal", "lognormal"]

FIRST_BUCKET_BYTES = 1 << 20  # first bucket of DistributedDataParallel; the others have bucket_cap_mb
_LOSS_BYTES = 4  # the all-reduce of the loss, from which all ranks learn whether the step is finite


@dataclass(frozen=True)
class Link:
    """A connection on which a message takes latency + size / bandwidth (Hockney, 1994)."""

    bytes_per_s: float
    """Bandwidth in one direction."""
    latency_s: float


@dataclass(frozen=True)
class Network:
    """Identical nodes with several GPUs each."""

    gpus_per_node: int
    inside: Link
    """Link between two GPUs of a node; each GPU has its own."""
    between: Link
    """Link between two nodes: all adapters of a node together, shared by its GPUs."""
    start_s: float = 0.0
    """Fixed time of each collective, before data moves."""

    def nodes(self, ranks: int) -> int:
        """Number of nodes that this many ranks fill."""
        return ceil(ranks / self.gpus_per_node)


@dataclass(frozen=True)
class Workload:
    """Work of one device in a training step."""

    micro_batch_s: float
    """Mean time of data, forward and backward of a micro-batch."""
    gradient_bytes: float
    """Size of all gradients (float32)."""
    optimizer_s: float = 0.0
    """Time of the optimizer, once a step."""
    micro_batch: int = 1
    """Samples of a micro-batch."""
    backward_share: float = 2 / 3
    """Share of the backward pass in micro_batch_s; it has twice as many multiplications as the forward pass."""
    overlap: float = 1.0
    """Relative speed of the backward pass during communication: 1 is full speed, 0 means that it waits."""
    bucket_bytes: float = 25 * 2**20
    """Size of a gradient bucket; the default is that of DistributedDataParallel."""
    spread: float = 0.0
    """Coefficient of variation (standard deviation / mean) of micro_batch_s over ranks and micro-batches."""
    distribution: Distribution = "lognormal"
    """Distribution of micro_batch_s."""


@dataclass(frozen=True)
class Reliability:
    """Failures of a cluster and costs of checkpoints."""

    node_mtbf_s: float
    """Mean time between failures of one node; inf means that nothing fails."""
    restart_s: float
    """Time from a failure to the next step."""
    checkpoint_s: float
    """Time for which saving a checkpoint stops the training."""
    interval_s: float | None = None
    """Training time between two checkpoints; None takes the best interval for each number of nodes."""


@dataclass(frozen=True)
class StepTime:
    """Parts of the time of a step."""

    compute_s: float
    """Mean compute time of a rank, including the optimizer."""
    straggling_s: float
    """Mean time by which the slowest rank exceeds compute_s."""
    all_reduce_s: float
    """All communication, overlapped or not."""
    exposed_s: float
    """Communication that nothing overlaps, so that the devices wait."""

    @property
    def total_s(self) -> float:
        """Time of the step."""
        return self.compute_s + self.straggling_s + self.exposed_s


@dataclass(frozen=True)
class Scale:
    """Predicted speed of a training on a number of ranks."""

    ranks: int
    nodes: int
    global_batch: int
    accumulation_steps: int
    step: StepTime
    samples_per_s: float
    efficiency: float
    """Samples per second and rank, divided by those of one rank. The single rank has the same global batch (strong
    scaling) or the same accumulation (weak scaling)."""
    interval_s: float
    """Training time between two checkpoints."""
    goodput: float
    """Share of the wall time spent on training that no failure undoes."""
    useful_samples_per_s: float
    """samples_per_s times goodput."""


def ring_s(size: float, ranks: int, link: Link) -> float:
    """Time of an all-reduce on a ring: 2 (N - 1) messages of size / N each (Patarasuk and Yuan, 2009)."""
    return 2 * (ranks - 1) * (link.latency_s + size / ranks / link.bytes_per_s)


def tree_s(size: float, ranks: int, link: Link) -> float:
    """Time of an all-reduce on two binary trees, each with half of the data (Sanders, Speck and Träff, 2009)."""
    return 2 * (ceil(log2(ranks)) * link.latency_s + size / link.bytes_per_s) if ranks > 1 else 0.0


def all_reduce_s(size: float, ranks: int, network: Network, algorithm: Algorithm = "best") -> float:
    """Time of an all-reduce over GPUs that fill one node after the other, in seconds.

    Args:
        size: data of each rank in bytes.
        ranks: number of GPUs.
        network: links of the cluster.
        algorithm: "ring" is one ring through all ranks, with the bandwidth of its slowest link and the latency of each
            link on its way (as in NCCL's src/graph/tuning.cc). "hierarchical" is a reduce-scatter inside the nodes,
            an all-reduce of the slices between the nodes on rings, and an all-gather inside the nodes. "tree" is
            the same with trees between the nodes. "best" is the fastest of these, which is NCCL's choice.
    """
    if ranks <= 1:
        return 0.0
    inside, between = network.inside, network.between
    local, nodes = min(ranks, network.gpus_per_node), network.nodes(ranks)
    if nodes == 1:
        return network.start_s + ring_s(size, ranks, inside)
    slowest = between.bytes_per_s if local == 1 else min(inside.bytes_per_s, between.bytes_per_s)
    latency_s = 2 * ((ranks - nodes) * inside.latency_s + (nodes - 1) * between.latency_s)
    within = ring_s(size, local, inside)  # reduce-scatter and all-gather take half as long as a ring each
    times = {
        "ring": latency_s + ring_s(size, ranks, Link(slowest, 0.0)),
        "hierarchical": within + ring_s(size, nodes, between),
        "tree": within + tree_s(size, nodes, between),
    }
    return network.start_s + (min(times.values()) if algorithm == "best" else times[algorithm])


def fit_link(sizes: Sequence[float], seconds: Sequence[float], ranks: int) -> Link:
    """Fit the link of a ring to measured all-reduces, by least squares of the relative errors.

    Args:
        sizes: data of each rank in bytes, one for each measurement.
        seconds: measured times.
        ranks: ranks of the measured all-reduces; at least 2.
    """
    import numpy as np

    slope, start = np.polyfit(sizes, seconds, 1, w=1 / np.asarray(seconds))
    hops = 2 * (ranks - 1)
    return Link(bytes_per_s=hops / ranks / max(float(slope), 1e-15), latency_s=max(float(start), 0.0) / hops)


def buckets(size: float, bucket_bytes: float) -> list[float]:
    """Sizes of the gradient buckets of DistributedDataParallel in the order of their all-reduces; the first is small.

    Args:
        size: size of all gradients in bytes.
        bucket_bytes: size of a bucket in bytes.
    """
    sizes = [min(size, FIRST_BUCKET_BYTES, bucket_bytes)]
    while (rest := size - sum(sizes)) > 1e-6 * size:
        sizes.append(min(rest, bucket_bytes))
    return sizes


def exposed_s(backward_s: float, sizes: Sequence[float], seconds: Sequence[float], overlap: float) -> float:
    """Time by which the all-reduces extend the backward pass, in seconds.

    Buckets become ready in proportion to their sizes. Their all-reduces run one after the other.

    Args:
        backward_s: time of the backward pass without communication.
        sizes: sizes of the buckets in bytes.
        seconds: times of their all-reduces.
        overlap: relative speed of the backward pass during an all-reduce, 0 to 1.
    """
    now = done = ready = 0.0  # done and ready count seconds of the backward pass without communication
    for size, reduce_s in zip(sizes, seconds, strict=True):
        ready += backward_s * size / sum(sizes)
        if done < ready:
            now, done = now + ready - done, ready
        now, done = now + reduce_s, min(backward_s, done + overlap * reduce_s)
    return max(0.0, now - done)


def expected_slowest(ranks: int, spread: float, distribution: Distribution = "lognormal") -> float:
    """Expected maximum of independent times with mean 1, one for each rank.

    The maximum of N times has the distribution F^N. Its mean is integrated over the quantiles z of a standard normal
    distribution, where F^N has the density N Phi(z)^(N-1) phi(z). The time x is 1 + spread z (normal), or exp(s z - s^2
    / 2) with s^2 = log(1 + spread^2) (log-normal).

    Args:
        ranks: N.
        spread: standard deviation of a time.
        distribution: distribution of a time.
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
    """Time of an optimizer step.

    Args:
        workload: work of one device.
        ranks: number of GPUs.
        accumulation_steps: micro-batches of each rank in a step.
        network: links of the cluster.
        algorithm: algorithm of the all-reduce, see `all_reduce_s`.
    """
    computing = accumulation_steps * workload.micro_batch_s
    # Variances of independent micro-batches add up. A sum of log-normals is approximated by one (Fenton, 1960).
    slowest = expected_slowest(ranks, workload.spread / sqrt(accumulation_steps), workload.distribution)
    if ranks == 1:
        return StepTime(computing + workload.optimizer_s, 0.0, 0.0, 0.0)
    sizes = buckets(workload.gradient_bytes, workload.bucket_bytes)
    seconds = [all_reduce_s(size, ranks, network, algorithm) for size in sizes]
    loss_s = all_reduce_s(_LOSS_BYTES, ranks, network, algorithm)
    backward_s = workload.backward_share * workload.micro_batch_s  # only the last micro-batch overlaps communication
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
    """Predict the speed of a training on several GPUs.

    Args:
        workload: work of one device.
        network: links of the cluster.
        reliability: failures and checkpoints.
        ranks: number of GPUs.
        accumulation_steps: micro-batches of a rank in a step. The global batch grows with the ranks (weak scaling).
        global_batch: fixed number of samples of a step (strong scaling); it determines `accumulation_steps` and must be
            a multiple of micro-batch times ranks.
        algorithm: algorithm of the all-reduce, see `all_reduce_s`.
    """
    single_accumulation = accumulation_steps if global_batch is None else global_batch // workload.micro_batch
    rank_accumulation = accumulation_steps if global_batch is None else single_accumulation // ranks
    step = step_time(workload, ranks, rank_accumulation, network, algorithm)
    samples = rank_accumulation * ranks * workload.micro_batch
    speed = samples / step.total_s
    single_step = step_time(workload, 1, single_accumulation, network)
    single_speed = single_accumulation * workload.micro_batch / single_step.total_s
    nodes = network.nodes(ranks)
    mtbf_s, checkpoint_s = reliability.node_mtbf_s / nodes, reliability.checkpoint_s
    interval_s = reliability.interval_s or best_interval_s(checkpoint_s, mtbf_s)
    kept = goodput(interval_s, checkpoint_s=checkpoint_s, mtbf_s=mtbf_s, restart_s=reliability.restart_s)
    return Scale(
        ranks=ranks,
        nodes=nodes,
        global_batch=samples,
        accumulation_steps=rank_accumulation,
        step=step,
        samples_per_s=speed,
        efficiency=speed / ranks / single_speed,
        interval_s=interval_s,
        goodput=kept,
        useful_samples_per_s=kept * speed,
    )


def possible_ranks(counts: Sequence[int], micro_batch: int, global_batch: int | None) -> list[int]:
    """Numbers of ranks that divide a fixed global batch; all of them if the global batch grows with the ranks.

    Args:
        counts: numbers of ranks to choose from.
        micro_batch: samples of a micro-batch.
        global_batch: samples of a step; None if it grows with the ranks.
    """
    return [n for n in counts if global_batch is None or global_batch % (micro_batch * n) == 0]
