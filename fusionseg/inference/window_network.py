"""The logits of windows by a trained network, averaged over flips of the windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fusionseg.inference.flips import Flip
from fusionseg.inference.trained_network import TrainedNetwork
from fusionseg.models.placement import direct_cpu_convolutions_
from fusionseg.training.precision import set_kernels


class WindowNetwork:
    """A trained network that predicts windows."""

    def __init__(
        self, member: TrainedNetwork, device: torch.device, flips: Sequence[Flip], outputs: Sequence[int]
    ) -> None:
        """Take a network.

        Args:
            member: the network.
            device: its device.
            flips: each window is flipped by each of them, and its logits are flipped back.
            outputs: the positions of the wanted outputs among those of the network.
        """
        if device.type == "cpu":
            direct_cpu_convolutions_(member.model)
        self._member = member
        self._device = device
        self._flips = flips
        self._outputs = None if list(outputs) == list(range(len(outputs))) else list(outputs)

    @property
    def copies(self) -> int:
        """Arrays of the size of the logits at the same time: those of the network before and after a change of their
        order, and the sum over the flips."""
        return 1 + (self._outputs is not None) if len(self._flips) == 1 else 3

    def __call__(self, windows: Tensor) -> Tensor:
        """The logits (N, K, X, Y, Z), float32, of windows (N, C, X, Y, Z); the mean over the flips."""
        set_kernels(self._member.config.train, self._device)  # the members of an ensemble may differ
        total: Tensor | None = None
        with torch.no_grad(), self._member.precision.autocast():
            for flip in self._flips:
                axes = [axis + 2 for axis in flip.axes]
                logits = self._member.model(windows.flip(axes) if axes else windows).float()
                logits = logits.flip(axes) if axes else logits
                if flip.outputs is not None:
                    logits = logits[:, list(flip.outputs)]
                total = logits if total is None else total.add_(logits)
                del logits  # before the next forward pass takes memory
            assert total is not None
            mean = total if len(self._flips) == 1 else total.div_(len(self._flips))
        return mean if self._outputs is None else mean[:, self._outputs]
