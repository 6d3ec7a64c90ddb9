"""`train.cuda_graph` with DDP on two ranks: recorded steps, with their collective operations, have the same bits.

A CPU stands for each GPU (`RecordedOperators`): an operator is recorded with its arguments, and run again by itself.
The reducer of DDP does its part while a step is recorded, and none of it in the steps that are replayed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from end_to_end.runs import Program, rank_environments
from training.recorded_training import SKIPPED, Training, assert_same

from fusionseg.distributed.world import World

WARM_UP, STEPS = 11, 16
CASES: dict[str, dict[str, Any]] = {
    "one micro-batch": {},  # DDP has a static graph
    "accumulation": {"micro_steps": 3, "optim": "sgd"},
    "loss scale": {"micro_steps": 2, "precision": "fp16"},
    "bf16": {"precision": "bf16"},
}


def rank(folder: str) -> None:
    torch.set_num_threads(1)
    world = World.from_environment("cpu")
    found: dict[str, Any] = {}
    for name, settings in CASES.items():
        plain, recorded = (Training(recorded=each, world=world, **settings) for each in (False, True))
        found[name] = {"totals": [plain.train(0, STEPS), recorded.train(0, STEPS)], "model": plain.model.state_dict()}
        assert_same(recorded, plain)
        found[name]["all_reduces"] = [names.count("c10d::allreduce_") for names in recorded.recorder.recorded]
        found[name]["replays"] = recorded.recorder.replays
    torch.save(found, f"{folder}/{world.rank}.pt")
    world.close()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    program = Program(tmp_path_factory.mktemp("output"))
    for process in [program.function(rank, (str(folder),), env) for env in rank_environments(2)]:
        process.wait(200).expect(0)
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_recorded_steps_of_ranks_have_the_same_bits(results: list[dict[str, Any]], name: str) -> None:
    micro_steps = CASES[name].get("micro_steps", 1)
    first, second = (result[name] for result in results)
    for result in (first, second):  # each rank has compared the weights and states of its two trainings
        plain, recorded = result["totals"]
        assert torch.tensor(recorded).nan_to_num(7).equal(torch.tensor(plain).nan_to_num(7))
        # Two buckets of gradients and the loss, all of them in the last micro-step.
        assert result["all_reduces"] == [0] * (micro_steps - 1) + [3]
        assert result["replays"] == micro_steps * (STEPS - WARM_UP)
    totals, others = (torch.tensor(result["totals"][1]).nan_to_num(7) for result in (first, second))
    assert totals.equal(others)
    for step in SKIPPED:  # rank 1 alone has a NaN, and both ranks skip the step; the later one is replayed
        assert totals[step][3] > totals[step - 1][3]
    torch.testing.assert_close(first["model"], second["model"], rtol=0, atol=0)
