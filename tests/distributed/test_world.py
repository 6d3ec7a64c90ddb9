"""Collectives of two ranks: waiting beyond the time limit of a collective operation, gradients in 16 bits."""

from __future__ import annotations

import time

import pytest
import torch
from end_to_end.runs import Program, rank_environments
from faults.catalogue import assert_seen
from torch import nn

from fusionseg.config import RunConfig, validate
from fusionseg.distributed.world import World
from fusionseg.runs.run_config import config_hash
from fusionseg.training.network import distribute
from fusionseg.utils.errors import UserError

TIMEOUT_S = 2


def config_with(gradients: str) -> RunConfig:
    return validate(
        {"model": {"name": "unet"}, "data": {"patch": [16, 16, 16]}, "distributed": {"gradients": gradients}}
    )


def gradient(world: World, gradients: str) -> torch.Tensor:
    """The gradient of a weight whose gradients on the two ranks are 1.001 and 2.002."""
    model = nn.Linear(1, 1, bias=False)
    wrapped = distribute(model, config_with(gradients), world, accumulation_steps=1)
    wrapped(torch.full((1, 1), 1.001 * (world.rank + 1))).sum().backward()
    grad = model.weight.grad
    assert grad is not None
    return grad


def rank(folder: str) -> None:
    world = World.from_environment("cpu", TIMEOUT_S)
    with world.wait_for_all("wait for a slow rank"):
        time.sleep(2 * TIMEOUT_S * world.rank)
    found = {gradients: gradient(world, gradients) for gradients in ("fp32", "bf16")}
    message = ""
    try:
        with world.wait_for_all("load the cache"):
            if world.rank == 1:
                raise UserError("the disk is full")
    except UserError as error:
        message = str(error)
    torch.save({**found, "message": message}, f"{folder}/{world.rank}.pt")
    world.close()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("ranks")
    program = Program(tmp_path_factory.mktemp("output"))
    for process in [program.function(rank, (str(folder),), env) for env in rank_environments(2)]:
        process.wait().expect(0)
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


@pytest.mark.fault("rank-fails-while-others-wait")
def test_slow_rank_and_failing_rank(results: list[dict[str, object]]) -> None:
    """The slow rank took twice the time limit of a collective operation, which followed all the same."""
    assert_seen("rank-fails-while-others-wait", str(results[0]["message"]))
    assert results[1]["message"] == "the disk is full"


def test_gradients_are_the_mean_over_the_ranks(results: list[dict[str, torch.Tensor]]) -> None:
    for result in results:
        assert result["fp32"].item() == pytest.approx(1.5015, rel=1e-6)
        assert result["bf16"].item() == pytest.approx(1.5015, rel=2**-7)
        assert result["bf16"].dtype == torch.float32
        assert torch.equal(result["bf16"], result["bf16"].bfloat16().float())


def test_hash_of_a_run_does_not_depend_on_free_keys() -> None:
    """A time limit may change between two starts of a run; the type of the gradients may not."""
    plain = {"model": {"name": "unet"}, "data": {"patch": [16, 16, 16]}}
    before = config_hash(validate(plain))
    assert config_hash(validate({**plain, "distributed": {"timeout_s": 60, "bind_cpus": False}})) == before
    assert config_hash(validate({**plain, "distributed": {"gradients": "bf16"}})) != before
