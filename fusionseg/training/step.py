"""One optimizer step: forward and backward passes of the micro-batches, gradient all-reduce, clipping, update."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from fusionseg.distributed.world import World
from fusionseg.models.sharding.parts import LocalParts
from fusionseg.models.weight_casts import WeightCasts
from fusionseg.observability.own_time import OwnTime
from fusionseg.observability.ranges import annotate
from fusionseg.training.micro_batches import MicroBatch
from fusionseg.training.numerics.weight_averages import WeightAverages
from fusionseg.training.precision import Precision
from fusionseg.training.step_graphs import StepGraphs
from fusionseg.training.tasks.task import Loss


@dataclass(frozen=True)
class StepStatistics:
    """Totals of the steps since the last reading, read from the device."""

    loss: float | None
    """Mean over all ranks and all finite steps; None if no step was finite."""
    grad_norm: float | None
    """Norm of the gradient of the last finite step, before clipping; None if no step was finite."""
    skipped: int
    """Steps skipped since the start of the run, because the loss or the gradient was not finite."""


class TrainStep:
    """The training step. Its counters stay on the device until `read`, and nothing in it waits for the device.

    Exception: Novograd and most optimizers from outside have no kernel that can skip a step on the device. A step with
    one of them reads a flag from the device.

    Args:
        model: the network; with several ranks, wrapped by DDP or divided among the ranks (fsdp).
        loss: of the output and the target of a micro-batch.
        optimizer: of the parameters that learn, or of their parts on this rank.
        precision: of the forward pass.
        world: the ranks.
        accumulation_steps: micro-batches of a step on each rank.
        clip_grad: highest norm of the gradient; None does not clip.
        cast_weights: cast the weights to 16 bits once a step, by one operator for many of them, where `precision` is
            not fp32. Not with `model.implementation: reference`: the casts have a hand-written backward pass. Not for a
            compiled network, where the compiler joins the casts with other operators, and not for a divided one, which
            has no whole weights between its forward and backward passes.
        parts: the parts of a divided network's weights on this rank, which the optimizer has; None for another network.
        graphs: records the micro-steps and replays them; None runs each of them.
        averages: of the weights, which each step moves; None if there are none.
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
        cast_weights: bool = True,
        parts: LocalParts | None = None,
        graphs: StepGraphs | None = None,
        averages: WeightAverages | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.precision = precision
        self.world = world
        self.accumulation_steps = accumulation_steps
        self.clip_grad = clip_grad
        self.graphs = graphs
        self.parts = parts
        self.averages = averages
        make_scaler = torch.amp.GradScaler if parts is None else parts.make_scaler
        self.scaler = make_scaler(world.device.type, enabled=precision.scales_loss)
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        # A recorded step cannot be measured. A divided network waits for other ranks in its passes.
        on_gpu = world.device.type == "cuda"
        self.own_time = OwnTime(enabled=on_gpu and graphs is None and isinstance(model, DistributedDataParallel))
        """Time of a GPU for the passes of this rank, to find slow ranks."""
        self._rates: list[float] = []  # of the parameter groups, in the last step
        self._skips_on_device = getattr(optimizer, "_step_supports_amp_scaling", False)
        casts = cast_weights and precision.name != "fp32"
        self.casts = WeightCasts(model, precision.dtype, adds_gradients=world.size == 1) if casts else None
        """The copies of the weights in 16 bits; None if there are none."""
        # Sum of losses, finite steps, last gradient norm, skipped steps, skipped steps in a row. In float64 the counts
        # are exact, and so is a resume.
        self._totals = torch.zeros(5, dtype=torch.float64, device=world.device)
        # What a finite step keeps of the totals, and what a skipped step adds to them.
        self._kept, self._skip = self._totals.new_tensor([[1, 1, 0, 1, 0], [0, 0, 0, 1, 1]])
        self._zero, self._one = torch.tensor([0.0, 1.0], device=world.device)
        self.loss_of_step: Tensor | None = None
        """The loss of the last step, on the device; None before the first one and with `graphs`."""
        self.micro_finite = torch.ones(accumulation_steps, dtype=torch.bool, device=world.device)
        """Whether the loss of each micro-batch of the last step was finite on this rank."""

    def __call__(self, step: int, micro_batches: Iterable[MicroBatch], lr: float) -> None:
        """Train on the global batch of a step.

        Args:
            step: the number of the step, from 0.
            micro_batches: this rank's part of the global batch, `accumulation_steps` micro-batches. They are taken one
                by one, so a generator holds one at a time in memory.
            lr: the learning rate.
        """
        self._set_learning_rate(lr)
        self.optimizer.zero_grad(set_to_none=True)
        if self.parts is not None:
            self.parts.drop_gradients()
        frozen = tuple(step < group.get("frozen_steps", 0) for group in self.optimizer.param_groups)
        if self.graphs is not None:
            self.graphs.begin(frozen)
        if self.averages is not None:
            self.averages.begin(step)
        losses: list[Tensor] = []
        with ExitStack() as casts:
            for micro, batch in zip(range(self.accumulation_steps), micro_batches, strict=True):
                torch.manual_seed(batch.seed)
                work = functools.partial(self._run_micro_step, micro, frozen, losses, casts)
                if self.graphs is None:
                    work(batch)
                else:
                    self.graphs.run(micro, batch, work)

    def _run_micro_step(
        self, micro: int, frozen: Sequence[bool], losses: list[Tensor], casts: ExitStack, batch: MicroBatch
    ) -> None:
        """Run a forward and a backward pass, and the update after the last of the step.

        Args:
            micro: index of the micro-batch in the step.
            frozen: for each parameter group, whether it does not learn yet.
            losses: of the micro-batches before; that of this one is added.
            casts: holds the casts of the weights until the last backward pass.
            batch: the micro-batch.
        """
        last = micro == self.accumulation_steps - 1
        with self._allreduce(last=last):
            with annotate("forward", micro), self.own_time.forward(), self.precision.autocast():
                if self.casts is not None and micro == 0:
                    casts.enter_context(self.casts.in_place())
                output = self.model(*batch.inputs)
            with annotate("loss", micro):
                loss = self.loss(output, batch.target)
                if self.accumulation_steps > 1:
                    loss = loss / self.accumulation_steps
            with annotate("backward", micro), self._adding_gradients():
                scaled = self.scaler.scale(loss)
                self.own_time.backward(scaled)
                scaled.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        if last:
            casts.close()
            with annotate("optimizer"):
                if self.parts is not None:
                    self.parts.take_gradients()
                self._drop_frozen_gradients(frozen)
                loss, norm, finite = self._reduce(losses)
                self._clip_and_update(norm, finite)
                if self.averages is not None:
                    self.averages.update(finite)
                self._count(loss, norm, finite)
                self.loss_of_step = loss if self.graphs is None else None  # a recording has one place for all steps

    def read(self) -> StepStatistics:
        """Wait for the device and take the totals since the last reading."""
        statistics = self.peek()
        self._totals[:3] = 0
        return statistics

    def peek(self) -> StepStatistics:
        """Wait for the device and return the totals since the last reading, which stay as they are."""
        loss_sum, count, norm, skipped, _ = self._totals.tolist()
        known = count > 0
        return StepStatistics(loss_sum / count if known else None, norm if known else None, int(skipped))

    def skipped_in_a_row(self) -> int:
        """Wait for the device and return the number of steps skipped since the last step that was not skipped."""
        return int(self._totals[4])

    def state_dict(self) -> dict[str, Any]:
        optimizer = self.optimizer.state_dict()
        for group, rate in zip(optimizer["param_groups"], self._rates, strict=False):  # none before the first step
            group["lr"] = rate  # a number also where the optimizer has a tensor
        return {
            "optimizer": optimizer if self.parts is None else self.parts.divided_state(optimizer),
            "scaler": self.scaler.state_dict(),
            "totals": self._totals,
        }

    def load_state_dict(self, state: dict[str, Any], changed: Collection[str] = ()) -> None:
        """Load the state of a checkpoint.

        Args:
            state: as `state_dict` gives it.
            changed: names of settings of the optimizer that stay as they are (`changed_settings`), such as
                weight_decay.
        """
        saved = state["optimizer"]
        kept = [{name: group[name] for name in changed if name in group} for group in self.optimizer.param_groups]
        first = {parameter: dict(states) for parameter, states in self.optimizer.state.items()} if changed else {}
        self.optimizer.load_state_dict(saved if self.parts is None else self.parts.own_state(saved))
        for group, own in zip(self.optimizer.param_groups, kept, strict=True):
            group.update(own)
        for parameter, states in first.items():  # a momentum that was 0 before has no buffers in the checkpoint
            self.optimizer.state[parameter] = {**states, **self.optimizer.state.get(parameter, {})}
        self._lay_out_states()
        if self.graphs is not None:
            self.graphs.forget()  # they have the memory of the states before
        if state["scaler"]:  # empty if the run has trained in bf16 or fp32 so far, on another device
            self.scaler.load_state_dict(state["scaler"])
        self._totals.copy_(state["totals"])

    def _lay_out_states(self) -> None:
        """Give the states of the optimizer the memory format of their parameters.

        The fused kernels read both in the order of their memory. A checkpoint may be from a device on which the network
        has another format (`train.channels_last: auto`), or from an older version.
        """
        for parameter, states in self.optimizer.state.items():
            for name, value in states.items():
                is_map = isinstance(value, Tensor) and value.shape == parameter.shape
                if is_map and value.stride() != parameter.stride():
                    states[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)

    def _set_learning_rate(self, lr: float) -> None:
        groups = self.optimizer.param_groups
        scales = [group.get("lr_scale", 1.0) for group in groups]
        self._rates = [lr * scale for scale in scales]
        rates = self._rates if self.graphs is None else self.graphs.rates(lr, scales)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    def _allreduce(self, *, last: bool) -> AbstractContextManager[None]:
        """Let DDP average the gradients over the ranks in the backward pass of the last micro-batch only."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def _adding_gradients(self) -> AbstractContextManager[None]:
        return nullcontext() if self.casts is None else self.casts.adding_gradients()

    def _drop_frozen_gradients(self, frozen: Sequence[bool]) -> None:
        """Remove the gradients of the parameter groups that do not learn yet (fusionseg.training.tasks.fine_tuning).

        An optimizer leaves a parameter without gradient as it is: no update, no decay, no state. The gradient norm does
        not count the parameter either.
        """
        for group, is_frozen in zip(self.optimizer.param_groups, frozen, strict=True):
            if is_frozen:
                for parameter in group["params"]:
                    parameter.grad = None

    def _reduce(self, losses: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, the gradient norm, and whether both are finite; all three are the same on every rank.

        The sum of the losses is not finite if the loss of one rank is not, and the reduced gradients are the same on
        every rank. So this single all-reduce is enough for all ranks to agree.

        Args:
            losses: of the micro-batches of this rank; their sum is the loss of the rank.
        """
        self.scaler.unscale_(self.optimizer)
        norm = self._gradient_norm()
        stacked = torch.stack(losses).float()
        torch.lt(stacked.abs(), math.inf, out=self.micro_finite)  # half the operators of `isfinite`
        loss = self.world.all_reduce_(functools.reduce(torch.add, stacked.unbind()))
        if self.world.size > 1:
            loss = loss / self.world.size
        return loss, norm, torch.maximum(loss.abs(), norm) < math.inf

    def _gradient_norm(self) -> Tensor:
        """Return the norm of the gradient, the same on every rank. Each rank may have a part of the gradient."""
        norm = get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        norm = norm.to(self.world.device)  # without any gradient it is on the CPU
        if self.parts is not None:
            norm = self.world.all_reduce_(norm.double().square()).sqrt().float()
        return norm

    def _clip_and_update(self, norm: Tensor, finite: Tensor) -> None:
        """Clip the gradients and update the parameters, unless the step is not finite."""
        if self._skips_on_device:
            # The fused kernels divide the gradients by `grad_scale` while they read them. This clips without a separate
            # pass, by the same factor as clip_grad_norm_.
            self.optimizer.grad_scale = self._clip_divisor(norm)  # type: ignore[attr-defined]
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif bool(finite):
            if self.clip_grad is not None:
                clip_grads_with_norm_(self.parameters, self.clip_grad, norm)
            self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()

    def _clip_divisor(self, norm: Tensor) -> Tensor | None:
        return None if self.clip_grad is None else ((norm + 1e-6) / self.clip_grad).clamp(min=1.0)

    def _count(self, loss: Tensor, norm: Tensor, finite: Tensor) -> None:
        values = torch.stack([loss, self._one, norm, self._zero, self._zero]).double()
        totals = self._totals
        torch.where(finite, torch.addcmul(values, totals, self._kept), totals + self._skip, out=totals)
