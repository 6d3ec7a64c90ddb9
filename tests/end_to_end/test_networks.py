"""Every network trains on two processes; `fusionseg models` and docs/models.md list it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_networks import NETWORKS, tiny

from end_to_end.runs import COMMANDS, REPOSITORY, Program, rank_environments
from fusionseg.config import RunConfig, validate
from fusionseg.distributed.world import World
from fusionseg.models.implementation import implementation_of
from fusionseg.training.micro_batches import MicroBatch
from fusionseg.training.network import build_network, distribute
from fusionseg.training.optimizer import build_optimizer
from fusionseg.training.precision import Precision
from fusionseg.training.step import TrainStep
from fusionseg.training.tasks.choice import build_task
from fusionseg.training.tasks.task import Task


def training_step(config: RunConfig, world: World, task: Task, model: torch.nn.Module) -> TrainStep:
    return TrainStep(
        distribute(model, config, world, accumulation_steps=1),
        task.build_loss(),
        build_optimizer(config.optim, model.parameters()),
        Precision("fp32", "as configured", "cpu"),
        world,
        accumulation_steps=1,
        clip_grad=1.0,
    )


def train_each(report: str) -> None:
    """Train each network on this rank with samples of its own; rank 0 writes the results."""
    torch.set_num_threads(1)
    world = World.from_environment("cpu")
    found = {}
    seen = set()
    for name, section in NETWORKS.items():
        config = validate({**tiny(name), "device": "cpu"})
        task = build_task(config)
        model = build_network(task, config, world.device, in_channels=1, out_channels=2)
        before = digest(model)
        step = training_step(config, world, task, model)
        draw = torch.Generator().manual_seed(world.rank)
        # DDP records the used parameters in the first step and relies on them in the second. Two steps are trained only
        # for the first network of a section.
        for number in range(1 if section in seen else 2):
            image = torch.randn(1, 1, *config.data.patch, generator=draw)
            label = (image > 0.5).long()
            step(number, [MicroBatch((image,), label, seed=0)], lr=1e-2)
        seen.add(section)
        statistics = step.read()
        found[name] = {
            "before": world.all_gather_object(before),
            "after": world.all_gather_object(digest(model)),
            "skipped": statistics.skipped,
            "grad_norm": world.all_gather_object(statistics.grad_norm),
        }
    if world.is_rank_zero:
        Path(report).write_text(json.dumps(found))
    world.close()


def train_both_implementations(report: str) -> None:
    """Train with the hand-written backward passes and with their reference; rank 0 writes the weights."""
    torch.set_num_threads(1)
    world = World.from_environment("cpu")
    found: dict[str, list[object]] = {}
    for name in ("swin_fusion_2_v2", "resenc_fusion_2_v2"):
        for chosen in ("fused", "reference"):
            raw = tiny(name)
            raw["model"]["implementation"] = chosen
            config = validate({**raw, "device": "cpu", "optim": {"name": "sgd"}})
            task = build_task(config)
            model = build_network(task, config, world.device, in_channels=1, out_channels=2)
            assert implementation_of(model) == chosen
            step = training_step(config, world, task, model)
            draw = torch.Generator().manual_seed(world.rank)
            for number in range(2):
                image = torch.randn(1, 1, *config.data.patch, generator=draw)
                step(number, [MicroBatch((image,), (image > 0.5).long(), seed=0)], lr=1e-2)
            found.setdefault(name, []).append(world.all_gather_object([digest(model), step.read().grad_norm]))
    if world.is_rank_zero:
        Path(report).write_text(json.dumps(found))
    world.close()


class PartlyUsed(torch.nn.Module):
    """A network from outside; its output depends on one of its layers in every second call only, on one in none."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv3d(in_channels, 4, 3, padding=1)
        self.second = torch.nn.Conv3d(4, 4, 1)
        self.unused = torch.nn.Linear(4, 4)
        self.head = torch.nn.Conv3d(4, out_channels, 1)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        self.calls += 1
        logits: torch.Tensor = self.head(self.second(x) if self.calls % 2 else x)
        return logits


def train_with_casts(report: str) -> None:
    """Train in bf16 with the casts of autocast and with one cast a step; rank 0 writes the gradients."""
    torch.set_num_threads(1)
    world = World.from_environment("cpu")
    outside = {"model": {"name": f"{PartlyUsed.__module__}:PartlyUsed"}, "data": {"patch": [8, 8, 8]}}
    found = []
    for raw, accumulation in ((tiny("monai_unet"), 1), (tiny("monai_unet"), 2), (outside, 2)):
        config = validate({**raw, "device": "cpu"})
        task = build_task(config)
        for cast_weights in (False, True):
            model = build_network(task, config, world.device, in_channels=1, out_channels=2)
            step = TrainStep(
                distribute(model, config, world, accumulation),
                task.build_loss(),
                build_optimizer(config.optim, model.parameters()),
                Precision("bf16", "as configured", "cpu"),
                world,
                accumulation_steps=accumulation,
                clip_grad=1.0,
                cast_weights=cast_weights,
            )
            draw = torch.Generator().manual_seed(world.rank)
            for number in range(3):
                images = [torch.randn(1, 1, *config.data.patch, generator=draw) for _ in range(accumulation)]
                step(number, [MicroBatch((image,), (image > 0.5).long(), seed=0) for image in images], lr=1e-2)
            grads = {name: weight.grad for name, weight in model.named_parameters()}
            sums = {name: None if grad is None else grad.double().square().sum().item() for name, grad in grads.items()}
            found.append(world.all_gather_object({"grads": sums, "weights": digest(model)}))
    if world.is_rank_zero:
        Path(report).write_text(json.dumps(found))
    world.close()


def digest(model: torch.nn.Module) -> list[float]:
    """Return sum and sum of squares of each tensor of the state dict."""
    sums = [(x.double().sum().item(), x.double().square().sum().item()) for x in model.state_dict().values()]
    return [value for pair in sums for value in pair]


def test_every_network_trains_on_two_processes(program: Program, tmp_path: Path) -> None:
    """The ranks start with the same parameters, train on different samples, and end with the same parameters."""
    report = tmp_path / "report.json"
    for rank in [program.function(train_each, (str(report),), env) for env in rank_environments(2)]:
        rank.wait().expect(0)
    found = json.loads(report.read_text())
    assert list(found) == list(NETWORKS)
    for name, ranks in found.items():
        assert ranks["before"][0] == ranks["before"][1], name
        assert ranks["after"][0] == ranks["after"][1] != ranks["before"][0], name
        assert ranks["grad_norm"][0] == ranks["grad_norm"][1] > 0, name
        assert ranks["skipped"] == 0, name


def test_the_reference_trains_the_same_on_two_processes(program: Program, tmp_path: Path) -> None:
    """Through the same code: weights and gradient norm are those of the hand-written backward passes."""
    report = tmp_path / "report.json"
    for rank in [program.function(train_both_implementations, (str(report),), env) for env in rank_environments(2)]:
        rank.wait().expect(0)
    for name, (fused, reference) in json.loads(report.read_text()).items():
        assert fused[0] == fused[1] and reference[0] == reference[1], name
        assert reference[0][0] == pytest.approx(fused[0][0], rel=1e-5, abs=1e-5), name
        assert reference[0][1] == pytest.approx(fused[0][1], rel=1e-5) and fused[0][1] > 0, name


def test_weights_that_are_cast_once_a_step_train_the_same_on_two_processes(program: Program, tmp_path: Path) -> None:
    """The gradients and weights are those of autocast, also where some weights are not used."""
    report = tmp_path / "report.json"
    for rank in [program.function(train_with_casts, (str(report),), env) for env in rank_environments(2)]:
        rank.wait().expect(0)
    found = json.loads(report.read_text())
    for autocast, cast in zip(found[::2], found[1::2], strict=True):
        assert autocast == cast
        assert cast[0] == cast[1]
    assert found[-1][0]["grads"]["unused.weight"] is None
    assert found[-1][0]["grads"]["second.weight"] > 0


# -- fusionseg models ----------------------------------------------------------------------------------------

BEGIN, END = "<!-- fusionseg models --markdown -->\n", "\n<!-- end -->"


def test_table_in_the_documentation(program: Program, tmp_path: Path) -> None:
    """It is what the command prints. Only the activations may differ a little: they depend on the version of torch."""
    file = tmp_path / "models.json"
    printed = program.warm(COMMANDS, "models", "--markdown", "--json", file).wait().expect(0).out.splitlines()
    page = (REPOSITORY / "docs/models.md").read_text()
    documented = page.split(BEGIN)[1].split(END)[0].splitlines()
    hint = "docs/models.md: put there what `fusionseg models --markdown` prints"
    assert [row.split(" | ")[:-1] for row in documented] == [row.split(" | ")[:-1] for row in printed], hint

    costs = json.loads(file.read_text())
    assert [cost["name"] for cost in costs] == list(NETWORKS)
    for row, cost in zip(documented[2:], costs, strict=True):
        value, unit = row.removesuffix(" |").split(" | ")[-1].split()
        shown = float(value) * {"MB": 1e6, "GB": 1e9}[unit]
        assert cost["activation_bytes"] == pytest.approx(shown, rel=0.05), f"{cost['name']}: {hint}"


def test_cost_of_a_configuration(program: Program, config_file: Path) -> None:
    """Network and patch are those of the file; overrides on the command line take precedence."""
    ask = ("models", "--config", config_file, "--classes", 3)
    row = program.warm(COMMANDS, *ask).wait().expect(0).out.splitlines()[1]
    assert row.split()[:2] == ["monai_unet", "2,360"]
    wider = program.warm(COMMANDS, *ask, "model.channels=[8, 16]").wait().expect(0).out.splitlines()[1]
    assert int(wider.split()[1].replace(",", "")) > 2360
    assert row.split()[2:] != wider.split()[2:]
    elsewhere = program.warm(COMMANDS, *ask, "--patch", 15, 16, 16).wait().expect(0).out.splitlines()[1]
    assert "needs multiples of 2, at least 4 in one axis, not [15, 16, 16]: try [16, 16, 16]" in elsewhere


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["unett"], "error: there is no network 'unett'; did you mean unet? Valid: "),
        (
            ["--patch", 0, 16, 16],
            "error: --patch, --in-channels, --classes: expected integers of at least 1, got (0, 16, 16), 1, 2\n",
        ),
    ],
)
def test_wrong_requests(program: Program, wrong: list[object], message: str) -> None:
    ended = program.warm(COMMANDS, "models", *wrong).wait().expect(2)
    assert ended.err.startswith(message)
    assert ended.out == ""
