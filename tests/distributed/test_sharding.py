"""`distributed.parallel: fsdp` on two ranks, beside DDP: gradients, losses, memory, whole weights and states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from end_to_end.runs import Program, rank_environments, tensors
from tiny_networks import tiny
from torch import Tensor, nn

from fusionseg.config import RunConfig, validate
from fusionseg.distributed.world import World
from fusionseg.models.sharding.network import whole_weights
from fusionseg.models.sharding.parts import LocalParts
from fusionseg.models.sharding.tensors import local_part, whole
from fusionseg.models.sharding.units import UnitTrace
from fusionseg.models.weights.loading import load_weights
from fusionseg.training.memory.estimate import estimate_memory
from fusionseg.training.memory.shard_units import find_units
from fusionseg.training.memory.simulated_shards import part_bytes
from fusionseg.training.micro_batches import MicroBatch
from fusionseg.training.network import build_network, build_weightless_network, distribute
from fusionseg.training.optimizer import build_optimizer
from fusionseg.training.precision import Precision
from fusionseg.training.step import TrainStep
from fusionseg.training.tasks.choice import build_task
from fusionseg.utils.errors import UserError

STEPS = 3
SGD = {"optim": {"name": "sgd", "lr": 0.01}}
CASES: dict[str, dict[str, Any]] = {
    "unet": {**tiny("attention_unet"), **SGD, "train": {"clip_grad": 0.5}},
    # its blocks read the weights of their parts, and are computed again in the backward pass
    "swin": {**tiny("swin_fusion_od"), "train": {"checkpoint_activations": True, "precision": "bf16"}},
    "scaled": {**tiny("resenc_unet"), **SGD, "train": {"precision": "fp16"}},
}


class Run:
    """A network and its training step, on this rank of two."""

    def __init__(self, raw: dict[str, Any], parallel: str, world: World) -> None:
        self.config = config = validate({**raw, "distributed": {"parallel": parallel}})
        self.world = world
        task = build_task(config)
        self.model = build_network(task, config, world.device, in_channels=1, out_channels=3)
        self.units: tuple[str, ...] = ()
        if parallel == "fsdp":
            self.units = find_units(task, config, in_channels=1, out_channels=3, device_type="cpu")
        precision = config.train.precision
        distributed = distribute(self.model, config, world, 2, self.units).train()
        parts = LocalParts(task.parameter_groups(self.model)) if parallel == "fsdp" else None
        self.step = TrainStep(
            distributed,
            task.build_loss(),
            build_optimizer(config.optim, task.parameter_groups(self.model) if parts is None else parts.groups),
            Precision("fp32" if precision == "auto" else precision, "as configured", "cpu"),
            world,
            accumulation_steps=2,
            clip_grad=config.train.clip_grad,
            cast_weights=parts is None,
            parts=parts,
        )
        if precision == "fp16":  # the first scale makes the first steps overflow
            self.step.scaler = type(self.step.scaler)("cpu", init_scale=2.0**22)

    def train(self, steps: range) -> list[tuple[float, float, int]]:
        """Train; return loss, gradient norm and skipped steps after each step; -1 for what is not known."""
        found = []
        for number in steps:
            draw = torch.Generator().manual_seed(10 * number + self.world.rank)
            images = [torch.randn(1, 1, *self.config.data.patch, generator=draw) for _ in range(2)]
            batches = [MicroBatch((each,), (each > 0).to(torch.uint8) + (each > 1), seed=number) for each in images]
            self.step(number, batches, self.config.optim.lr)
            statistics = self.step.read()
            loss, norm = (-1.0 if value is None else value for value in (statistics.loss, statistics.grad_norm))
            found.append((loss, norm, statistics.skipped))
        return found

    def held_bytes(self) -> tuple[int, int, int]:
        """Bytes of the parts of weights, gradients and states of the optimizer that this rank holds."""
        weights = list(self.model.parameters())
        states = [value for values in self.step.optimizer.state.values() for value in values.values()]
        return (
            sum(local_part(weight).untyped_storage().nbytes() for weight in weights),
            sum(local_part(weight.grad).nbytes for weight in weights if weight.grad is not None),
            sum(value.nbytes for value in states if isinstance(value, Tensor) and value.dim()),
        )

    def state(self) -> dict[str, Tensor]:
        """The whole tensors of network and optimizer, by their path."""
        state = {"model": self.model.state_dict(), "train_step": self.step.state_dict()}
        return {name: whole(value).clone() for name, value in tensors(state).items()}


def rank(folder: str) -> None:
    torch.set_num_threads(1)
    world = World.from_environment("cpu")
    found: dict[str, Any] = {}
    for name, raw in CASES.items():
        ddp, fsdp = Run(raw, "ddp", world), Run(raw, "fsdp", world)
        steps = 1 if name == "swin" else STEPS
        found[name] = {
            "ddp": ddp.train(range(steps)),
            "fsdp": fsdp.train(range(steps)),
            "units": len(fsdp.units),
            "values": [sum(local_part(each).numel() for each in run.model.parameters()) for run in (ddp, fsdp)],
            "states": [ddp.state(), fsdp.state()],
            "bytes": fsdp.held_bytes(),
        }
    # The last run continues that with DDP, and gives a network its weights.
    saved = {"model": ddp.model.state_dict(), "train_step": ddp.step.state_dict()}
    fsdp = Run(CASES["scaled"], "fsdp", world)
    load_weights(fsdp.model, saved["model"])
    fsdp.step.load_state_dict(saved["train_step"])
    found["loaded"] = [ddp.state(), fsdp.state()]
    found["continued"] = [run.train(range(STEPS, STEPS + 2)) for run in (ddp, fsdp)]

    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), whole_weights(fsdp.model.eval()):
        # Rank 1 calls the network more often, and waits for nobody.
        outputs = [fsdp.model(image) for _ in range(1 + 2 * world.rank)]
        found["outputs"] = [output[0] if isinstance(output, list) else output for output in outputs]
    fsdp.model.train()
    found["whole"] = fsdp.train(range(STEPS + 2, STEPS + 3))[0][0]
    with pytest.raises(UserError, match=r"distributed\.parallel.*scale.*set ddp"):
        distribute(Scalar(), fsdp.config, world, 1)
    torch.save(found, f"{folder}/{world.rank}.pt")
    world.close()


class Scalar(nn.Module):
    """A network with a weight that cannot be divided."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    program = Program(tmp_path_factory.mktemp("output"))
    for process in [program.function(rank, (str(folder),), env) for env in rank_environments(2)]:
        process.wait(400).expect(0)
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_losses_and_states_are_those_of_ddp(results: list[dict[str, Any]], name: str) -> None:
    first, second = (result[name] for result in results)
    assert first["ddp"] == second["ddp"] and first["fsdp"] == second["fsdp"]
    in_16_bits = CASES[name]["train"].get("precision") is not None
    for ddp, fsdp in zip(first["ddp"], first["fsdp"], strict=True):
        assert fsdp == pytest.approx(ddp, rel=1e-2 if in_16_bits else 1e-5)
    if name == "scaled":
        assert 0 < first["fsdp"][-1][2] < STEPS, "some steps overflow and are skipped, and others are not"
    ddp, fsdp = first["states"]
    assert ddp.keys() == fsdp.keys()
    for key, value in ddp.items():
        assert (value.shape, value.dtype) == (fsdp[key].shape, fsdp[key].dtype), key
        assert in_16_bits or torch.allclose(value, fsdp[key], rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize("name", CASES)
def test_each_rank_holds_half_of_the_network_in_several_units(results: list[dict[str, Any]], name: str) -> None:
    (total, half), (_, other) = (result[name]["values"] for result in results)
    assert half + other == total
    assert max(half, other) < 0.52 * total
    assert results[0][name]["units"] >= 5


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_of_memory_knows_the_division(results: list[dict[str, Any]], name: str) -> None:
    config = validate({**CASES[name], "distributed": {"parallel": "fsdp"}})
    task = build_task(config)
    precision = Precision("fp32", "", "cpu")
    whole, divided = (
        estimate_memory(task, config, 1, 3, precision=precision, world_size=ranks) for ranks in (1, len(results))
    )
    first, second = (result[name]["bytes"] for result in results)
    model = build_weightless_network(task, config, 1, 3)
    assert first[0] == second[0] == part_bytes(model.parameters(), 2) < 0.52 * part_bytes(model.parameters(), 1)
    assert first[1:] == (divided.gradients, divided.optimizer), "rank 0 has the largest parts"
    assert 0.48 * whole.gradients < second[1] <= first[1]
    assert divided.parameters == whole.parameters
    assert first[0] < divided.weights < whole.weights, "the network's own unit is whole"
    assert divided.tensors - divided.validation < whole.tensors, "a validation has the whole weights"


def test_a_divided_run_continues_one_with_ddp(results: list[dict[str, Any]]) -> None:
    for result in results:
        ddp, fsdp = result["loaded"]
        assert ddp.keys() == fsdp.keys()
        assert all(torch.equal(value, fsdp[key]) for key, value in ddp.items())
        assert result["continued"][0][-1][0] > 0, "not all steps are skipped"
        assert result["continued"][1] == [pytest.approx(each, rel=2e-2) for each in result["continued"][0]]


def test_whole_weights_for_a_validation(results: list[dict[str, Any]]) -> None:
    assert [len(result["outputs"]) for result in results] == [1, 3]
    outputs = [output for result in results for output in result["outputs"]]
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert results[0]["whole"] == results[1]["whole"] > 0, "the training goes on"


class Odd(nn.Module):
    """Parts that can be units, and parts that cannot; all have as many weights."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4)
        self.read = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied_too = nn.Linear(4, 4)
        self.tied_too.weight = self.tied.weight
        self.unused = nn.Linear(4, 4)
        self.in_place = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4))
        self.escaping = Escaping(4, 4)
        self.outer = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.plain(x)))
        x = torch.nn.functional.linear(x, self.read.weight) + self.tied_too(self.tied(x))
        return self.outer(self.escaping(x + 1) @ self.in_place(x).mT @ x)  # type: ignore[no-any-return]


class Escaping(nn.Linear):
    """A module whose output is its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return self.weight[:1].expand(4, 4)


def test_units_are_modules_that_use_their_weights_alone() -> None:
    model = Odd()
    trace = UnitTrace(model)
    with trace:
        loss = model(torch.zeros(4, 4)).sum()
        trace.end()
        loss.backward()
    assert trace.units() == ["plain", "in_place.1", "outer.0", "outer.1.0", "outer.1.1"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim": {"name": "novograd"}}, "distributed.parallel: .*novograd.*adamw, adam, sgd"),
        ({"train": {"compile": True}}, "distributed.parallel: .*train.compile=false"),
    ],
)
def test_settings_that_need_whole_weights_are_refused(settings: dict[str, Any], message: str) -> None:
    plain = {"model": {"name": "unet"}, "data": {"patch": [16, 16, 16]}, "distributed": {"parallel": "fsdp"}}
    assert isinstance(validate(plain), RunConfig)
    with pytest.raises(UserError, match=message):
        validate({**plain, **settings})
