"""One optimizer step: accumulate micro-batches, agree that it is finite, clip, step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from fusionseg.distributed.world import World
from fusionseg.observability.ranges import annotate
from fusionseg.training.precision import Precision

Batch = Callable[[int, int], tuple[tuple[Tensor, ...], Any]]
"""(step, micro-step) -> what the network is called with, and what the loss compares its output with; on the device."""

Loss = Callable[[Any, Any], Tensor]
"""(output of the network, target) -> the mean over the micro-batch, computed in float32."""


@dataclass(frozen=True)
class StepStatistics:
    """What the steps since the last reading came to, read from the device."""

    loss: float | None
    """Mean over the finite steps and all ranks."""
    grad_norm: float | None
    """Of the last finite step, before clipping."""
    skipped: int
    """Steps skipped since the start of the run."""


class TrainStep:
    """The training step. Its counters stay on the device until `read`; nothing in it waits for the device.

    (But for Novograd on a GPU, which has no kernel that can skip a step: it reads one flag a step.)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        world: World,
        *,
        accumulation_steps: int,
        clip_grad: float | None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.precision = precision
        self.world = world
        self.accumulation_steps = accumulation_steps
        self.clip_grad = clip_grad
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=precision.scales_loss)
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._skips_on_device = getattr(optimizer, "_step_supports_amp_scaling", False)
        # loss sum, finite steps, last gradient norm, skipped, skipped in a row; float64: exact counts, exact resume
        self._totals = torch.zeros(5, dtype=torch.float64, device=world.device)
        # per micro-step of the step, whether this rank's loss was finite: for naming the cases afterwards
        self.micro_finite = torch.ones(accumulation_steps, dtype=torch.bool, device=world.device)

    def __call__(self, step: int, batch: Batch, lr: float, seed: Callable[[int], int]) -> None:
        """Train on the global batch of `step`; `seed(micro)` seeds what the network draws in a micro-step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = torch.zeros((), device=self.world.device)
        for micro in range(self.accumulation_steps):
            with annotate("data", micro):
                inputs, target = batch(step, micro)
            torch.manual_seed(seed(micro))
            with self._synchronised(last=micro == self.accumulation_steps - 1):
                with annotate("forward", micro), self.precision.autocast():
                    output = self.model(*inputs)
                with annotate("loss", micro):
                    loss = self.loss(output, target) / self.accumulation_steps
                with annotate("backward", micro):
                    self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.micro_finite[micro] = loss.detach().isfinite()
            loss_sum += loss.detach()
        with annotate("optimizer"):
            self._drop_frozen(step)
            self._optimize(loss_sum)

    def read(self) -> StepStatistics:
        """Wait for the device and take the totals since the last reading."""
        loss_sum, count, norm, skipped, _ = self._totals.tolist()
        self._totals[:3] = 0
        known = count > 0
        return StepStatistics(loss_sum / count if known else None, norm if known else None, int(skipped))

    def skipped_in_a_row(self) -> int:
        """Wait for the device: how many of the last steps were skipped."""
        return int(self._totals[4])

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "totals": self._totals.cpu(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where the run has trained in bf16 or fp32 so far, on another device
            self.scaler.load_state_dict(state["scaler"])
        self._totals.copy_(state["totals"])

    def _synchronised(self, *, last: bool) -> Any:
        """Gradients cross the ranks with the last micro-batch only."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def _drop_frozen(self, step: int) -> None:
        """Forget the gradients of what does not learn yet (fusionseg.training.fine_tuning).

        An optimizer passes over a parameter without one: no step, no decay, no state; and the norm does not count it.
        """
        for group in self.optimizer.param_groups:
            if step < group.get("frozen_steps", 0):
                for parameter in group["params"]:
                    parameter.grad = None

    def _clip_divisor(self, norm: Tensor) -> Tensor | None:
        return None if self.clip_grad is None else ((norm + 1e-6) / self.clip_grad).clamp(min=1.0)

    def _optimize(self, loss_sum: Tensor) -> None:
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        # The summed loss is not finite as soon as one rank's is not, and the reduced gradients are the same
        # everywhere: every rank comes to the same answer with this one reduction.
        loss = self.world.all_reduce_(loss_sum) / self.world.size
        finite = loss.isfinite() & norm.isfinite()
        if self._skips_on_device:
            # The fused kernels divide the gradients by `grad_scale` as they read them: clipping without a pass of
            # its own, by the factor that clip_grad_norm_ would multiply with.
            self.optimizer.grad_scale = self._clip_divisor(norm)  # type: ignore[attr-defined]
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif bool(finite):
            if self.clip_grad is not None:
                clip_grads_with_norm_(self.parameters, self.clip_grad, norm)
            self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        totals, kept = self._totals, finite.double()
        totals[0] += torch.where(finite, loss, 0.0)
        totals[1] += kept
        totals[2] = torch.where(finite, norm, totals[2])
        totals[3] += 1 - kept
        totals[4] = (totals[4] + 1) * (1 - kept)
