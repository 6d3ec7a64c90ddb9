"""Batch norm over two ranks equals batch norm over all of their samples on one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.runs import Program, rank_environments
from torch import Tensor, nn

from fusionseg.config import RunConfig, validate
from fusionseg.distributed.world import World
from fusionseg.models import build_model
from fusionseg.models.sync_batch_norm import synchronise_batch_norm
from fusionseg.training.network import distribute

STEPS = 3


def network(config: RunConfig) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config.model, in_channels=1, out_channels=2)


def batches() -> Tensor:
    """Samples (steps, B, C, X, Y, Z); the four samples of a step differ in mean and standard deviation."""
    noise = torch.randn(STEPS, 4, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    return noise * torch.arange(1, 5).view(4, 1, 1, 1, 1) + torch.arange(4).view(4, 1, 1, 1, 1)


def train(model: nn.Module, samples: Tensor) -> list[float]:
    """Train some steps with SGD on a loss that is the mean over the samples; return the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for x in samples:
        optimizer.zero_grad()
        loss = (model.train()(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def rank(config: RunConfig, folder: str) -> None:
    world = World.from_environment("cpu")
    model = network(config)
    losses = train(
        distribute(model, config, world, accumulation_steps=1), batches()[:, world.rank * 2 : world.rank * 2 + 2]
    )
    torch.save({"losses": losses, "model": model.state_dict()}, f"{folder}/{world.rank}.pt")
    world.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(tmp_path_factory.mktemp("output"))


@pytest.mark.parametrize(
    "model",
    [
        {"name": "resunet"},
        {"name": "unet", "dims": 2, "view": "axial"},
    ],
    ids=lambda model: model["name"],
)
def test_two_ranks_train_as_one_rank_with_all_samples(program: Program, tmp_path: Path, model: dict[str, Any]) -> None:
    config = validate({"model": {"channels": [4, 8], "norm": "batch", **model}, "data": {"patch": [8, 8, 8]}})
    alone = network(config)
    losses = train(alone, batches())
    ranks = [program.function(rank, (config, str(tmp_path)), env) for env in rank_environments(2)]
    for process in ranks:
        process.wait().expect(0)

    first, second = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    assert (torch.tensor([first["losses"], second["losses"]]).mean(dim=0)).tolist() == pytest.approx(losses, rel=1e-5)
    state = alone.state_dict()
    assert first["model"].keys() == second["model"].keys() == state.keys()
    assert sum("running_var" in key for key in state) >= 3
    for key, value in state.items():  # weights and running statistics
        torch.testing.assert_close(
            first["model"][key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: key + text
        )
        assert torch.equal(first["model"][key], second["model"][key])


def test_network_without_batch_norm_is_unchanged() -> None:
    assert synchronise_batch_norm(nn.Sequential(nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2)), torch.device("cpu")) == 0
