"""How fast a device is at the two things that a step consists of: multiplying matrices and moving bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_SECONDS = 0.4  # of each measurement, the first call aside


@dataclass(frozen=True)
class DeviceRates:
    """Measured, with the threads that torch has now."""

    matmul_flops_per_s: dict[int, float]
    """By edge of the square matrices."""
    convolution_flops_per_s: float
    """Of a 3x3x3 convolution between equally many channels."""
    copy_bytes_per_s: float
    """Of a copy, read and written bytes."""
    triad_bytes_per_s: float
    """Of a = b + s c, read and written bytes (McCalpin's STREAM, 1995)."""

    @property
    def flops_per_s(self) -> float:
        """The best rate seen: two for each multiply-add."""
        return max(*self.matmul_flops_per_s.values(), self.convolution_flops_per_s)

    @property
    def bytes_per_s(self) -> float:
        """The best bandwidth seen."""
        return max(self.copy_bytes_per_s, self.triad_bytes_per_s)

    def better(self, other: DeviceRates) -> DeviceRates:
        """The better of two measurements, each rate by itself."""
        return DeviceRates(
            {size: max(rate, other.matmul_flops_per_s[size]) for size, rate in self.matmul_flops_per_s.items()},
            max(self.convolution_flops_per_s, other.convolution_flops_per_s),
            max(self.copy_bytes_per_s, other.copy_bytes_per_s),
            max(self.triad_bytes_per_s, other.triad_bytes_per_s),
        )


def measure_rates(device: torch.device, dtype: torch.dtype, *, channels_last: bool = False) -> DeviceRates:
    """Rates of a device for operands of a type; a few seconds.

    Args:
        channels_last: the layout of the convolution's tensors.
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
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    image = torch.randn(batch, channels, edge, edge, edge, device=device, dtype=dtype).to(memory_format=layout)
    weight = torch.randn(channels, channels, 3, 3, 3, device=device, dtype=dtype).to(memory_format=layout)
    with torch.no_grad():
        seconds = best_s(lambda: torch.nn.functional.conv3d(image, weight, padding=1), device)
    return 2 * batch * channels**2 * 27 * edge**3 / seconds


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, including the work that the call queues on the device.

    Args:
        work: called once.
        device: a GPU is waited for after the call.
    """
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def best_s(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of at least three calls, after a first."""
    timed(work, device)
    times = [timed(work, device) for _ in range(3)]
    while sum(times) < _SECONDS:
        times.append(timed(work, device))
    return min(times)
