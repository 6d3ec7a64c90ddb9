"""Exponential moving averages of the weights (`train.ema`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fusionseg.config import TrainConfig
from fusionseg.models.sharding.tensors import divided, is_sharded, local_part, part_of


class WeightAverages:
    """Averages of the weights that learn, and of the running statistics of batch norm: after each step
    `average = decay * average + (1 - decay) * weight` (Polyak and Juditsky, 1992, in the exponential form).

    A skipped step moves no average. A weight that is frozen and every other buffer, such as an attention mask, are
    those of the network. If the network is divided among the ranks, each rank averages its own parts.

    Args:
        model: the network with the layers of the training, not wrapped by DDP. Its weights stay at their place in
            memory; the averages begin with their values.
        decay: of the average, 0 to 1; it spans about the last 1 / (1 - decay) steps.
        warmup: begin with a lower decay, see `decay_of`.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool) -> None:
        self.decay = decay
        self.warmup = warmup
        self._sources = averaged_tensors(model)
        unique = {id(source): source for source in self._sources.values()}  # a weight may have several names
        self._weights = [local_part(source).detach() for source in unique.values()]
        self._averages = [weight.clone() for weight in self._weights]
        self._average_of = dict(zip(unique, self._averages, strict=True))
        self._share = torch.zeros((), device=self._weights[0].device)
        self._filled = 0.0  # the value of `_share`

    def __str__(self) -> str:
        return f"decay {self.decay:g}{' after a warm-up' if self.warmup else ''}"

    def decay_of(self, step: int) -> float:
        """The decay of a step: with `warmup` at most (1 + step) / (10 + step), so that an average of few steps forgets
        the initial weights (the rule of TensorFlow's ExponentialMovingAverage).

        Args:
            step: the number of the step, from 0; a skipped step counts.
        """
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    def restart(self) -> None:
        """Begin again with the present weights."""
        for average, weight in self._pairs():
            average.copy_(weight)

    def begin(self, step: int) -> None:
        """Begin a step: its decay goes to the device. A recorded step (`train.cuda_graph`) reads it there.

        Args:
            step: the number of the step, from 0.
        """
        share = 1 - self.decay_of(step)
        if share != self._filled:
            self._share.fill_(share)
            self._filled = share

    @torch.no_grad()
    def update(self, finite: Tensor) -> None:
        """Average the weights after the update of a step, by few operators and without waiting for the device.

        Args:
            finite: whether the step was not skipped, a boolean on the device.
        """
        # A skipped step has changed no weight, and its share is 0: the averages keep their bits. `torch._foreach_lerp_`
        # has no form for one share on the device.
        share = self._share * finite
        differences = torch._foreach_sub(self._weights, self._averages)
        torch._foreach_mul_(differences, share)
        torch._foreach_add_(self._averages, differences)

    @contextmanager
    def in_network(self) -> Iterator[None]:
        """Give the network its averaged weights within the context; afterwards it has its own again, bit for bit.

        The values are exchanged at their place: whatever knows the memory of the weights (DDP, a compiled network,
        recorded steps, a divided network) needs to know nothing.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the names of the network's state dict; divided ones if the network is divided."""
        parts = ((name, source, self._average_of[id(source)]) for name, source in self._sources.items())
        return {name: divided(part, source) if is_sharded(source) else part for name, source, part in parts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load averages in place.

        Args:
            state: whole tensors by name, on any device.

        Raises:
            RuntimeError: names or shapes differ; nothing was loaded.
        """
        if differing := self._sources.keys() ^ state.keys():
            raise RuntimeError(f"averages of one of the two only: {', '.join(sorted(differing)[:4])}")
        if wrong := [name for name, source in self._sources.items() if source.shape != state[name].shape]:
            raise RuntimeError(f"size mismatch for the averages of {', '.join(wrong[:4])}")
        for name, source in self._sources.items():
            self._average_of[id(source)].copy_(part_of(state[name], source))

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self._averages, self._weights, strict=True)

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, weight in self._pairs():  # one after the other: a second copy of one tensor at a time
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)


def averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network that `train.ema` averages, by their names in its state dict."""
    named = model.named_parameters(remove_duplicate=False)
    found: dict[str, Tensor] = {name: weight for name, weight in named if weight.requires_grad}
    for prefix, module in model.named_modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            for name in ("running_mean", "running_var"):
                found[f"{prefix}.{name}" if prefix else name] = getattr(module, name)
    return found


def open_averages(config: TrainConfig, model: nn.Module) -> WeightAverages | None:
    """Open the averages of a training; None without `train.ema`.

    Args:
        config: the `train` section.
        model: as for `WeightAverages`.
    """
    return None if config.ema is None else WeightAverages(model, config.ema, warmup=config.ema_warmup)
