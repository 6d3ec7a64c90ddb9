"""A small training whose steps can be recorded (`RecordedOperators`), on one rank or on several."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from training.recorded_operators import RecordedOperators

from fusionseg.config import validate
from fusionseg.distributed.world import World
from fusionseg.training.micro_batches import MicroBatch
from fusionseg.training.network import distribute
from fusionseg.training.numerics.weight_averages import WeightAverages
from fusionseg.training.optimizer import build_optimizer
from fusionseg.training.precision import Precision
from fusionseg.training.step import TrainStep
from fusionseg.training.step_graphs import StepGraphs, build_step_graphs

CPU = torch.device("cpu")
WARM_UP = 2
SKIPPED = (4, 13)
"""The steps with a NaN in an image."""


class Network(nn.Module):
    """Convolutions, norm, random numbers, and a second input.

    Its table fills a bucket of DDP by itself, so that there are two.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 6, 3, padding=1)
        self.norm = norm
        self.dropout = nn.Dropout(0.3)
        self.last = nn.Conv3d(6, 2, 1)
        self.table = nn.Parameter(torch.zeros(600, 600))

    def forward(self, image: Tensor, bias: Tensor) -> Tensor:
        hidden = self.dropout(torch.relu(self.norm(self.first(image))))
        logits: Tensor = self.last(hidden) + bias + self.table.mean()
        return logits


class Training:
    """A network and its training step; `graphs` records and replays its micro-steps.

    Args:
        recorded: record the steps.
        optim: name of the optimizer.
        precision: of the forward pass.
        micro_steps: micro-batches of a step on each rank.
        frozen: first steps in which the first layer does not learn.
        world: the ranks; None for one. With several the network has instance norm, is wrapped by DDP, and is recorded
            after as many steps as on GPUs.
        ema: decay of the averaged weights; None for no averages.
    """

    def __init__(
        self,
        *,
        recorded: bool,
        optim: str = "adamw",
        precision: str = "fp32",
        micro_steps: int = 1,
        frozen: int = 0,
        world: World | None = None,
        ema: float | None = None,
    ) -> None:
        torch.manual_seed(0)
        world = self.world = World.from_environment("cpu") if world is None else world
        self.model = Network(nn.BatchNorm3d(6) if world.size == 1 else nn.InstanceNorm3d(6, affine=True))
        config = validate(
            {
                "model": {"name": "unet"},
                "optim": {"name": optim, "lr": 2**-7},
                "train": {"global_batch": micro_steps * world.size, "micro_batch": 1, "cuda_graph": recorded},
            }
        )
        groups = [
            {"params": list(self.model.first.parameters()), "lr_scale": 0.5, "frozen_steps": frozen},
            {"params": [*self.model.norm.parameters(), *self.model.last.parameters(), self.model.table]},
        ]
        optimizer = build_optimizer(config.optim, groups)
        distributed = distribute(self.model, config, world, micro_steps)
        self.recorder = RecordedOperators()
        self.micro_steps = micro_steps
        graphs = None
        if recorded and world.size == 1:
            graphs = StepGraphs(self.recorder, optimizer, CPU, warm_up=WARM_UP)
        elif recorded:
            graphs = build_step_graphs(self.recorder, config, world, distributed, optimizer)
        self.step = TrainStep(
            distributed,
            nn.functional.cross_entropy,
            optimizer,
            Precision(precision, "", "cpu"),
            world,
            accumulation_steps=micro_steps,
            clip_grad=0.5,
            graphs=graphs,
            averages=None if ema is None else WeightAverages(self.model, ema, warmup=True),
        )

    def train(self, first: int, end: int) -> list[list[float]]:
        """Train; return the totals of the step (loss, norm, skipped steps) after each step."""
        totals = []
        for step in range(first, end):
            rate = 2.0**-7 - step * 2.0**-11  # exact in float32, as the rates of recorded steps are
            self.step(step, [batch(step, micro, self.world) for micro in range(self.micro_steps)], rate)
            totals.append(self.step._totals.tolist())
        return totals

    def state(self) -> dict[str, Any]:
        averages = {} if self.step.averages is None else self.step.averages.state_dict()
        return {"model": self.model.state_dict(), "step": self.step.state_dict(), "averages": averages}


def assert_same(one: Training, other: Training) -> None:
    torch.testing.assert_close(one.state(), other.state(), rtol=0, atol=0, equal_nan=True)


def batch(step: int, micro: int, world: World) -> MicroBatch:
    """Make a micro-batch, which is another one for each step and rank. The last rank has a NaN in `SKIPPED` steps."""
    generator = torch.Generator().manual_seed(1000 * world.rank + 100 * step + micro)
    image = torch.randn(2, 1, 8, 8, 8, generator=generator)
    if step in SKIPPED and world.rank == world.size - 1:
        image[0, 0, 0, 0, 0] = float("nan")
    return MicroBatch((image, image[:, :, :1, :1, :1].clone()), (image[:, 0] > 0).long(), seed=10 * step + micro)
