"""Weights that are cast once a step: the numbers of autocast, with fewer operators."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from tiny_networks import tiny
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from fusionseg.config import validate
from fusionseg.distributed.launch import read_launch
from fusionseg.distributed.world import World
from fusionseg.models import weight_casts
from fusionseg.models.placement import channels_last_
from fusionseg.models.weight_casts import WeightCasts
from fusionseg.training.micro_batches import MicroBatch
from fusionseg.training.network import build_network
from fusionseg.training.optimizer import build_optimizer
from fusionseg.training.optimizers.standard import OptimConfig
from fusionseg.training.precision import Precision
from fusionseg.training.step import TrainStep
from fusionseg.training.tasks.choice import build_task
from fusionseg.training.tasks.task import Loss

CPU = torch.device("cpu")


def gradients(
    model: nn.Module, loss: Loss, shape: tuple[int, ...], *, cast_weights: bool, precision: str = "bf16"
) -> dict[str, Tensor | None]:
    """Train for two steps of two micro-batches; return the gradients of the second, and the loss and the norm."""
    step = TrainStep(
        model.train(),
        loss,
        torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.01, fused=True),
        Precision(precision, "as configured", "cpu"),
        World(read_launch({}), CPU),
        accumulation_steps=2,
        clip_grad=None,
        cast_weights=cast_weights,
    )
    assert (step.casts is not None) == cast_weights
    # The usual first scale of 65536 overflows, and the steps would be skipped.
    step.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=precision == "fp16")
    draw = torch.Generator().manual_seed(1)
    for number in range(2):
        images = [torch.randn(1, *shape, generator=draw) for _ in range(2)]
        step(number, [MicroBatch((image,), (image[:, :1] > 0.5).long(), seed=0) for image in images], lr=0.01)
    found = {name: weight.grad for name, weight in model.named_parameters()}
    statistics = step.read()
    return {**found, "loss": torch.tensor(statistics.loss), "norm": torch.tensor(statistics.grad_norm)}


def compare(
    build: Callable[[], nn.Module],
    loss: Loss,
    shape: tuple[int, ...],
    *,
    precision: str = "bf16",
    rounding: dict[str, float] | None = None,
) -> None:
    """Compare the gradients with those of autocast: bit by bit, or up to rounding."""
    expected = gradients(build(), loss, shape, cast_weights=False, precision=precision)
    found = gradients(build(), loss, shape, cast_weights=True, precision=precision)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        other = found[name]
        assert (value is None) == (other is None), name
        if value is not None and other is not None:
            assert other.dtype == torch.float32, name
            torch.testing.assert_close(
                other, value, **(rounding or {"rtol": 0.0, "atol": 0.0}), msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize(
    ("name", "checkpoint_activations", "exact"),
    [
        ("monai_unet", False, True),  # with PReLU
        ("attention_unet", False, True),
        ("resenc_unet", True, True),
        ("unetr", False, True),
        ("swin_fusion_od", True, False),  # its hand-written gradients round once more
    ],
)
def test_gradients_are_those_of_autocast(
    name: str, checkpoint_activations: bool, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_casts, "GROUP_BYTES", 20_000)  # several groups
    train = {"checkpoint_activations": checkpoint_activations, "channels_last": name == "monai_unet"}
    config = validate({**tiny(name), "train": train})
    task = build_task(config)

    def build() -> nn.Module:
        return build_network(task, config, CPU, in_channels=1, out_channels=2)

    rounding = None if exact else {"rtol": 0.02, "atol": 2e-3}
    compare(build, task.build_loss(), (1, *config.data.patch), rounding=rounding)


class Odd(nn.Module):
    """A network that uses its weights in all the ways in which a network from outside may."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.frozen = nn.Conv3d(4, 4, 1).requires_grad_(False)
        self.again = nn.Conv3d(4, 4, 3, padding=1)
        self.tied = nn.Conv3d(4, 4, 3, padding=1, bias=False)
        self.tied.weight = self.again.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv3d(4, 4, 1))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.full = nn.Linear(4, 4)
        self.embedding = nn.Embedding(3, 4)
        self.words = nn.Linear(4, 3, bias=False)
        self.words.weight = self.embedding.weight
        self.unused = nn.Linear(4, 4)
        self.norm = nn.InstanceNorm3d(4, affine=True)
        self.head = nn.Conv3d(4, 2, 1)
        self.dtypes: dict[str, torch.dtype] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        x = x + checkpoint(self.again, x, use_reentrant=True)
        x = x + checkpoint(self.tied, self.frozen(x), use_reentrant=False) + self.normed(x)
        tokens = x.flatten(2).mT
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        with torch.autocast("cpu", enabled=False):  # the weight itself, not its copy
            self.dtypes["full"] = self.full.weight.dtype
            tokens = tokens.float() + F.linear(tokens.float(), self.full.weight, self.full.bias)
        self.dtypes["direct"] = self.head.weight.dtype
        tokens = tokens + self.words(tokens) @ self.embedding(torch.arange(3))
        return F.conv3d(tokens.mT.unflatten(2, x.shape[2:]), self.head.weight, self.head.bias)


def cross_entropy(logits: Any, target: Any) -> Tensor:
    loss: Tensor = F.cross_entropy(logits.float(), target[:, 0])
    return loss


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_that_are_frozen_tied_unused_and_read_without_autocast(precision: str) -> None:
    built: list[Odd] = []

    def build() -> nn.Module:
        torch.manual_seed(0)
        built.append(Odd())
        return built[-1]

    compare(build, cross_entropy, (1, 4, 4, 4), precision=precision)
    plain, cast = built
    assert cast.dtypes["full"] == torch.float32
    assert (plain.dtypes["direct"], cast.dtypes["direct"]) == (
        torch.float32,
        torch.bfloat16 if precision == "bf16" else torch.float16,
    )
    assert cast.unused.weight.grad is None and cast.frozen.weight.grad is None
    assert {type(cast.first), type(cast.tied)} == {nn.Conv3d} and {type(cast.full), type(cast.words)} == {nn.Linear}
    assert all(vars(a).keys() == vars(b).keys() for a, b in zip(plain.modules(), cast.modules(), strict=True))


def test_groups_are_neighbours_of_one_kind_and_of_a_limited_size() -> None:
    layers = [nn.Linear(1000, 1000, bias=False) for _ in range(20)]  # 4 MB each
    for layer in layers[5:8]:
        layer.requires_grad_(False)
    casts = WeightCasts(nn.Sequential(*layers), torch.bfloat16, adds_gradients=False)
    positions = {id(layer.weight): index for index, layer in enumerate(layers)}
    found = [[positions[id(weight)] for weight in group.weights] for group in casts._groups]
    assert found == [[0, 1, 2, 3, 4, 8], [9, 10, 11, 12, 13, 14], [15, 16, 17, 18, 19], [5, 6, 7]]
    assert casts.nbytes == 20 * 2 * 1000**2
    alone = WeightCasts(nn.Sequential(*layers), torch.bfloat16, adds_gradients=True)  # no rank waits for gradients
    assert [len(group.weights) for group in alone._groups] == [17, 3]


def test_compiled_modules_and_subclasses_are_left_to_autocast() -> None:
    class Own(nn.Linear):
        """A layer that may use its weight in another way."""

    by_method = nn.Sequential(nn.Linear(2, 2))
    by_method.compile(backend="eager")
    model = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"), by_method, Own(2, 2), nn.Linear(2, 2))
    casts = WeightCasts(model, torch.bfloat16, adds_gradients=True)
    (group,) = casts._groups
    assert list(map(id, group.weights)) == list(map(id, model[3].parameters()))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_checkpoint_of_another_memory_format_continues_the_same(name: Literal["adamw", "sgd"]) -> None:
    """The fused kernels read weights, gradients and states in the order of their memory."""

    def build(*, channels_last: bool) -> tuple[nn.Module, TrainStep]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Conv3d(4, 2, 3))
        if channels_last:
            channels_last_(model)
        optimizer = build_optimizer(OptimConfig(name=name), model.parameters())
        world, precision = World(read_launch({}), CPU), Precision("fp32", "as configured", "cpu")
        step = TrainStep(model, cross_entropy, optimizer, precision, world, accumulation_steps=1, clip_grad=1.0)
        return model, step

    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(1, 1, 6, 6, 6, generator=draw) for _ in range(3)]

    def train(step: TrainStep, number: int) -> None:
        image = batches[number]
        step(number, [MicroBatch((image,), (image[:, :, :2, :2, :2] > 0).long(), seed=0)], lr=0.1)

    model, step = build(channels_last=True)
    train(step, 0)
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(step.state_dict())
    resumed, other = build(channels_last=False)
    resumed.load_state_dict(weights)
    other.load_state_dict(state)
    for number in (1, 2):
        train(step, number)
        train(other, number)
    for expected, found in zip(model.parameters(), resumed.parameters(), strict=True):
        assert expected.stride() != found.stride() or expected.dim() == 1 or 1 in expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Counted(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def test_operators_of_a_step_do_not_grow_with_the_number_of_weights() -> None:
    """Each further layer of convolution and norm adds none that casts, adds gradients or copies weights."""
    counts = []
    for layers in (2, 6):
        model = nn.Sequential(
            nn.Conv3d(1, 4, 1), *(nn.Sequential(nn.Conv3d(4, 4, 1), nn.GroupNorm(2, 4)) for _ in range(layers))
        )
        with Counted() as counted:
            gradients(model, cross_entropy, (1, 4, 4, 4), cast_weights=True)
        counts.append(counted.count)
    for name in ("_to_copy", "copy_", "add_", "add", "clone", "_foreach_copy_", "_foreach_add_"):
        assert counts[0][f"aten::{name}"] == counts[1][f"aten::{name}"], name
    assert counts[0]["aten::_foreach_copy_"] == 2 * (1 + 2)  # two steps: weights, gradients of two micro-batches
    assert counts[0]["aten::_foreach_add_"] == 2 * 2  # the gradients of the convolutions, and those of the norms
