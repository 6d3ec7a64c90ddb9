"""The memory and the time that a planned training takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, prod
from typing import Any, Literal

from fusionseg.config import RunConfig, validate
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.models.cost import network_cost
from fusionseg.planning.device import GB, PlannedDevice
from fusionseg.planning.network import PlannedNetwork
from fusionseg.training.memory.estimate import MemoryEstimate, estimate_memory
from fusionseg.training.tasks.choice import build_task

USABLE = 0.9
"""Share of the GPU's memory that a plan uses. The rest is for fragments and for what the model does not know."""
STEP_S = {True: 1.0, False: 5.0}
"""Longest step on a CPU in seconds: of a network whose width is chosen here, and of another one."""
MIN_BATCH = 2
"""nnU-Net's smallest batch, in samples of an optimizer step."""
BACKWARD = 3
"""Forward and backward pass together take about three times the multiply-adds of the forward pass."""
OVERLAP = 0.5
"""Overlap of the windows of a validation."""


@dataclass(frozen=True)
class CostModel:
    """The cost of a network on the device of a plan.

    Args:
        device: the device.
        scheme: the classes and outputs of the data set.
        channels: of the images.
        training: builds the sections `optim` and `schedule` for a network name, which memory depends on.
        cache_bytes: of the prepared cases that lie in the memory of the device.
        parallel: `distributed.parallel`, where the device has several ranks.
    """

    device: PlannedDevice
    scheme: LabelScheme
    channels: int
    optimizer: Callable[[str], dict[str, Any]]
    cache_bytes: float = 0.0
    parallel: Literal["ddp", "fsdp"] = "ddp"
    _multiply_adds: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _memory: dict[tuple[Any, ...], MemoryEstimate] = field(default_factory=dict)

    def divided(self) -> CostModel:
        """The cost with the network divided among the ranks."""
        return replace(self, parallel="fsdp", _memory={})

    @property
    def usable_bytes(self) -> float:
        """Memory of the GPU for the training beside the cache."""
        assert self.device.memory_gb is not None
        return USABLE * self.device.memory_gb * GB - self.cache_bytes

    def load(self, network: PlannedNetwork, micro_batch: int) -> float:
        """The share of the limit that a network needs: of the memory of a GPU, or of `STEP_S` on a CPU."""
        if self.device.is_gpu:
            return self.memory(network, micro_batch).total / self.usable_bytes
        named_width = "channels" in network.values or "filters" in network.values
        return self.step_s(network, micro_batch) / STEP_S[named_width]

    def memory(self, network: PlannedNetwork, micro_batch: int) -> MemoryEstimate:
        """Memory of one rank in the training, accumulated gradients included."""
        key = (network.patch, repr(network.values), micro_batch)
        if key not in self._memory:
            config = self._config(network, micro_batch)
            task = build_task(config, self.scheme)
            self._memory[key] = estimate_memory(
                task,
                config,
                self.channels,
                self.scheme.num_outputs,
                precision=self.device.precision,
                world_size=self.device.ranks,
            )
        return self._memory[key]

    def multiply_adds(self, network: PlannedNetwork) -> int:
        """Multiply-adds of the forward pass of one sample."""
        key = (network.patch, repr(network.values))
        if key not in self._multiply_adds:
            self._multiply_adds[key] = network_cost(
                network.section, network.patch, in_channels=self.channels, out_channels=self.scheme.num_outputs
            ).multiply_adds
        return self._multiply_adds[key]

    def step_s(self, network: PlannedNetwork, batch: int) -> float:
        """Rough seconds of an optimizer step on the CPU."""
        return BACKWARD * batch * self.multiply_adds(network) / self.device.multiply_adds_per_s

    def _config(self, network: PlannedNetwork, micro_batch: int) -> RunConfig:
        return validate(
            {
                "data": {"patch": list(network.patch)},
                "model": network.values,
                "optim": self.optimizer(network.values["name"]),
                "train": {
                    "global_batch": global_batch(micro_batch, self.device.ranks),
                    "micro_batch": micro_batch,
                },
                "distributed": {"parallel": self.parallel},
            }
        )


def global_batch(micro_batch: int, ranks: int) -> int:
    """Samples of an optimizer step; a single sample is accumulated to nnU-Net's smallest batch.

    Args:
        micro_batch: samples of a forward pass.
        ranks: number of ranks.
    """
    return max(MIN_BATCH, micro_batch * ranks)


def least_micro_batch(ranks: int) -> int:
    """Samples of a forward pass with which a step has nnU-Net's smallest batch without accumulation.

    Args:
        ranks: number of ranks.
    """
    return ceil(MIN_BATCH / ranks)


def windows(shape: Sequence[int], patch: Sequence[int]) -> int:
    """Number of windows of a validation of one case.

    Args:
        shape: X, Y, Z of the volume.
        patch: X, Y, Z of the window.
    """
    return prod(
        1 + ceil(max(0, size - edge) / max(1, edge * (1 - OVERLAP))) for size, edge in zip(shape, patch, strict=True)
    )
