"""Measured speed of a device and of the connection between ranks: matrix products, memory bandwidth, all-reduce."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from fusionseg.distributed.world import World

_QUICK_SECONDS = 0.03
_SECONDS = 0.4  # total time of each measurement, without the first call


@dataclass(frozen=True)
class DeviceRates:
    """Rates of a device, measured with torch's present number of threads."""

    matmul_flops_per_s: dict[int, float]
    """Rate of square matrix products by the edge of the matrices."""
    convolution_flops_per_s: float
    """Rate of a 3x3x3 convolution with as many output as input channels."""
    copy_bytes_per_s: float
    """Bytes read and written by a copy."""
    triad_bytes_per_s: float
    """Bytes read and written by a = b + s c (STREAM triad, McCalpin, 1995)."""

    @property
    def flops_per_s(self) -> float:
        """Highest measured rate of operations; a multiply-add counts as two."""
        return max(*self.matmul_flops_per_s.values(), self.convolution_flops_per_s)

    @property
    def bytes_per_s(self) -> float:
        """Highest measured memory bandwidth."""
        return max(self.copy_bytes_per_s, self.triad_bytes_per_s)

    def best_of(self, other: DeviceRates) -> DeviceRates:
        """Higher value of each rate in two measurements."""
        return DeviceRates(
            {size: max(rate, other.matmul_flops_per_s[size]) for size, rate in self.matmul_flops_per_s.items()},
            max(self.convolution_flops_per_s, other.convolution_flops_per_s),
            max(self.copy_bytes_per_s, other.copy_bytes_per_s),
            max(self.triad_bytes_per_s, other.triad_bytes_per_s),
        )


@dataclass(frozen=True)
class QuickRates:
    """The two rates of a roofline."""

    flops_per_s: float
    """Operations per second of a matrix product; a multiply-add counts as two."""
    bytes_per_s: float
    """Bytes read and written per second by a copy."""


@functools.cache
def quick_rates(device: torch.device, dtype: torch.dtype, threads: int) -> QuickRates:
    """Measure the two rates of a device in a fraction of a second, once for each process.

    The random numbers of the training and its peak memory are left as they are.

    Args:
        device: CPU or GPU.
        dtype: type of the operands of the matrix product.
        threads: torch's present number of threads, on which the rates of a CPU depend.
    """
    cuda = device.type == "cuda"
    size, count = (4096, 64 << 20) if cuda else (768, 8 << 20)
    # Convolutions in float32 use TF32 on a GPU unless it is switched off, and so does this matrix product.
    tf32 = cuda and dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    precision = torch.get_float32_matmul_precision()
    generator = torch.Generator(device).manual_seed(0)
    left = torch.rand(size, size, device=device, dtype=dtype, generator=generator)
    product, source = torch.empty_like(left), torch.zeros(count, device=device)
    target = torch.zeros_like(source)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        product_s = best_s(lambda: torch.mm(left, left, out=product), device, _QUICK_SECONDS)
    finally:
        torch.set_float32_matmul_precision(precision)
    copy_s = best_s(lambda: target.copy_(source), device, _QUICK_SECONDS)
    return QuickRates(2 * size**3 / product_s, 2 * source.nbytes / copy_s)


def measure_rates(device: torch.device, dtype: torch.dtype, *, channels_last: bool = False) -> DeviceRates:
    """Measure the rates of a device; this takes a few seconds.

    Args:
        device: CPU or GPU.
        dtype: type of the operands of matrix products and convolutions; bandwidths are measured in float32.
        channels_last: memory format of the convolution's tensors.
    """
    cuda = device.type == "cuda"
    matmul = {size: _matmul_rate(size, device, dtype) for size in ((2048, 4096, 8192) if cuda else (512, 1024, 2048))}
    convolution = _convolution_rate(*((4, 128, 64) if cuda else (1, 32, 48)), device, dtype, channels_last)
    # Far larger than any cache: 1 GiB each on a GPU, 128 MiB on a CPU.
    a, b, c = (torch.ones((256 if cuda else 32) << 20, device=device) for _ in range(3))
    copy = 2 * a.nbytes / best_s(lambda: a.copy_(b), device)
    triad = 3 * a.nbytes / best_s(lambda: torch.add(b, c, alpha=0.5, out=a), device)
    return DeviceRates(matmul, convolution, copy, triad)


def _matmul_rate(size: int, device: torch.device, dtype: torch.dtype) -> float:
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / best_s(lambda: torch.mm(left, right, out=out), device)


def _convolution_rate(
    batch: int, channels: int, edge: int, device: torch.device, dtype: torch.dtype, channels_last: bool
) -> float:
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    image = torch.randn(batch, channels, edge, edge, edge, device=device, dtype=dtype).to(memory_format=memory_format)
    weight = torch.randn(channels, channels, 3, 3, 3, device=device, dtype=dtype).to(memory_format=memory_format)
    with torch.no_grad():
        seconds = best_s(lambda: torch.nn.functional.conv3d(image, weight, padding=1), device)
    return 2 * batch * channels**2 * 27 * edge**3 / seconds


def timed(work: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of one call, including the work that the call queues on the device.

    Args:
        work: function to time; it is called once.
        device: device on which the function works; it is synchronised after the call.
        clock: seconds; `time.process_time` counts the CPU time of this process alone.
    """
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def best_s(work: Callable[[], object], device: torch.device, total_s: float = _SECONDS) -> float:
    """Seconds of the fastest of at least three calls, after one call that is not counted.

    Args:
        work: function to time.
        device: device on which it works.
        total_s: the calls are repeated until they have taken this time together.
    """
    timed(work, device)
    times = [timed(work, device) for _ in range(3)]
    while sum(times) < total_s:
        times.append(timed(work, device))
    return min(times)


def all_reduce_seconds(world: World, size_bytes: int, repeats: int = 5) -> float:
    """Measure an all-reduce of float32 data over all ranks: the median time on this rank, in seconds.

    Collective: all ranks must call it. A barrier precedes each all-reduce, so that the ranks start together.

    Args:
        world: ranks that take part.
        size_bytes: data of each rank in bytes; at least 4.
        repeats: measured all-reduces, after one that is not counted.
    """
    data = torch.ones(size_bytes // 4, device=world.device)
    times = []
    for _ in range(repeats + 1):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(data)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]
