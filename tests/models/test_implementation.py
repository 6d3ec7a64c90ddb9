"""`model.implementation`: the hand-written backward passes equal their reference, which has none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import NETWORKS, tiny
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

import fusionseg
from fusionseg.config import RunConfig, validate
from fusionseg.config.pretraining import PretrainConfig
from fusionseg.losses.named.dice import LossConfig
from fusionseg.losses.segmentation import build_loss
from fusionseg.models import implementation as switch
from fusionseg.models.cost import network_cost
from fusionseg.models.implementation import (
    chosen_implementation,
    describe_implementation,
    implementation_of,
    set_implementation_,
)
from fusionseg.models.masked import build_masked
from fusionseg.models.memory_efficient import convolution_blocks, decoder_input
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.models.swin import attention, mlp, patch_merging
from fusionseg.performance.step_memory import measured_step_bytes
from fusionseg.runs.run_config import config_hash, refuse_other_config
from fusionseg.training.memory.estimate import estimate_memory
from fusionseg.training.memory.live_tensors import LiveTensors
from fusionseg.training.memory.simulated_step import run_weightless_step
from fusionseg.training.network import build_network, build_weightless_network
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.choice import build_task
from fusionseg.utils.errors import UserError

OWN = [name for name in NETWORKS if name.startswith(("swin_", "resenc_fusion_"))]
QUICK = ("swin_unetr_v2", "swin_fusion_2_v2", "resenc_fusion_2_v2", "monai_unet")
"""All blocks with hand-written passes are in these. The tests of the other networks take minutes."""


def networks(names: Sequence[str], quick: Sequence[str] = QUICK) -> list[Any]:
    """The names as parameters of a test, which is a long one for all but a few."""
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.long]) for name in names]


CPU = torch.device("cpu")


def config_of(name: str, implementation: str) -> RunConfig:
    raw = tiny(name)
    raw["model"]["implementation"] = implementation
    return validate(raw)


def build(name: str, implementation: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, tuple[int, ...]]:
    """Build the tiny network as a training does, with the same weights in each call; return it with its patch."""
    config = config_of(name, implementation)
    model = build_network(build_task(config), config, CPU, in_channels=1, out_channels=2).to(dtype)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # some are 0 at first, and would hide what depends on them
            parameter.add_(torch.randn(parameter.shape, generator=draw).to(dtype), alpha=0.02)
    return model.train(), config.data.patch


def loss_of(name: str, model: nn.Module, patch: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """The Dice and cross-entropy loss of two random samples; in float64 another loss, of one sample."""
    draw = torch.Generator().manual_seed(1)
    image = torch.randn(1 if dtype == torch.float64 else 2, 1, *patch, generator=draw)
    label = (image > 0.5).long()
    outputs = model(image.to(dtype))
    parts = outputs if isinstance(outputs, list) else [outputs]
    if dtype == torch.float64:  # the loss is computed in float32
        weights = [torch.randn(part.shape, generator=draw, dtype=dtype) for part in parts]
        return torch.stack([(part * weight).mean() for part, weight in zip(parts, weights, strict=True)]).sum()
    loss: Tensor = build_loss(LossConfig())([part.float() for part in parts] if len(parts) > 1 else parts[0], label)
    return loss


def gradients(name: str, implementation: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The loss and the gradients of all weights."""
    model, patch = build(name, implementation, dtype)
    loss = loss_of(name, model, patch, dtype)
    loss.backward()
    found = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach(), **found}


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """Compare values relative to the norm of each tensor; those that are 0 but for rounding relative to all of them."""
    assert found.keys() == expected.keys()
    least = 1e-3 * torch.stack([value.norm() for value in expected.values()]).norm()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= tolerance * max(value.norm(), least), name


def own_passes(loss: Tensor) -> set[str]:
    """Names of the hand-written autograd functions in the graph of a loss."""
    waiting, seen, found = [loss.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            found.add(node.name())
        waiting += [parent for parent, _ in node.next_functions]
    return found


@pytest.fixture(params=["cpu", "gpu"])
def device_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hand-written passes of a CPU, and those of a GPU."""
    if request.param == "gpu":
        for module in (attention, mlp, patch_merging, convolution_blocks, decoder_input):
            monkeypatch.setattr(module, "uses_chunks", lambda _: False)
    return str(request.param)


@pytest.mark.parametrize("name", networks(OWN, ("swin_unetr_v2", "resenc_fusion_2_v2")))
def test_gradients_are_those_of_the_reference(name: str, device_form: str) -> None:
    """In float64, where only errors are left."""
    expected = gradients(name, "reference", torch.float64)
    assert_equal(gradients(name, "fused", torch.float64), expected, 1e-11)


@pytest.mark.parametrize("name", networks(OWN))
def test_loss_and_gradients_in_float32(name: str) -> None:
    """The gradients differ less than rounding changes them in either form.

    It changes them by 1e-4 to 1e-2 in these tiny networks: the norms of the bottleneck have two voxels, a value near 0
    may have another sign, and a value near the maximum of a pooling may be the maximum.
    """
    fused, reference = (gradients(name, chosen, torch.float32) for chosen in ("fused", "reference"))
    assert fused.keys() == reference.keys()
    torch.testing.assert_close(fused.pop("loss"), reference.pop("loss"), rtol=1e-5, atol=0)
    whole = [torch.cat([value.flatten() for value in found.values()]) for found in (fused, reference)]
    assert (whole[0] - whole[1]).norm() < 1e-2 * whole[1].norm()


@pytest.mark.parametrize("name", networks(NETWORKS))
def test_the_reference_has_no_hand_written_pass(name: str) -> None:
    found = {}
    for chosen in ("fused", "reference"):
        model, patch = build(name, chosen)
        found[chosen] = own_passes(loss_of(name, model, patch)), implementation_of(model), model.state_dict()
    expected = ("fused", "reference") if name in OWN else ("plain", "plain")
    assert (bool(found["fused"][0]), found["fused"][1]) == (name in OWN, expected[0])
    assert found["reference"][:2] == (set(), expected[1])
    shapes = [[(key, value.shape) for key, value in found[chosen][2].items()] for chosen in found]
    assert shapes[0] == shapes[1]


def test_the_casts_of_weights_are_no_hand_written_pass_either() -> None:
    """Of every network: in 16 bits autocast casts the weights."""
    for name in ("swin_unetr", "unet"):
        found = {}
        for chosen in ("fused", "reference"):
            config = config_of(name, chosen)
            task = build_task(config)
            model = build_weightless_network(task, config, 1, 2)
            precision = Precision("bf16", "", "cpu")
            with LiveTensors() as live:
                step = run_weightless_step(task, config, model, 1, precision, micro_steps=1, mode=live)
            found[chosen] = step.casts is not None
        assert found == {"fused": True, "reference": False}


@pytest.mark.parametrize("method", ["mae", "token", "blackout"])
def test_pretraining_equals_its_reference(method: str) -> None:
    """With mae the windows are those of `BlockAttention`."""
    section = SwinConfig(name="swin_unetr", feature_size=12, depths=(2, 1, 1, 1), window_size=4)
    block = {"mae": 32, "token": 16, "blackout": 8}[method]
    pretrain = PretrainConfig.model_validate(
        {"method": method, "block": block, "ratio": 0.5, "decoder": {"width": 16, "depth": 1}}
    )
    patch = (64, 32, 32)
    draw = torch.Generator().manual_seed(1)
    image = torch.randn(2, 1, *patch, generator=draw, dtype=torch.float64)
    hidden = torch.zeros(2, *pretrain.grid(patch), dtype=torch.bool)
    hidden[:, : hidden.shape[1] // 2] = True
    results = []
    for chosen in ("fused", "reference"):
        torch.manual_seed(0)
        model = build_masked(section, pretrain, in_channels=1, patch=patch).double()
        set_implementation_(model, chosen, "cpu")
        loss = model(image, hidden).square().mean()
        passes = own_passes(loss)
        loss.backward()
        grads = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
        results.append({"loss": loss.detach(), **grads})
        assert bool(passes) == (chosen == "fused")
    assert_equal(*results, 1e-11)


@pytest.mark.parametrize(
    "name",
    networks(["swin_unetr", "swin_unetr_v2", "swin_fusion_full", "resenc_fusion_2_v2"], ["swin_unetr_v2"]),
)
def test_the_reference_with_checkpointing(name: str) -> None:
    """Activation checkpointing changes no gradient, and what it runs again has no hand-written pass."""
    raw = tiny(name)
    raw["model"]["implementation"] = "reference"
    raw["train"] = {"checkpoint_activations": True}
    config = validate(raw)
    torch.manual_seed(0)
    again = build_network(build_task(config), config, CPU, in_channels=1, out_channels=2).train()
    plain, patch = build(name, "reference")
    again.load_state_dict(plain.state_dict())
    losses = [loss_of(name, model, patch) for model in (again, plain)]
    assert own_passes(losses[0]) == set()
    for loss in losses:
        loss.backward()
    for (key, one), other in zip(again.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=key)


@pytest.mark.long
@pytest.mark.parametrize("name", OWN)
def test_the_reference_compiles_as_one_graph(name: str) -> None:
    torch.compiler.reset()
    model, patch = build(name, "reference")
    expected = loss_of(name, model, patch)
    expected.backward()
    grads = [None if weight.grad is None else weight.grad.clone() for weight in model.parameters()]
    model.zero_grad(set_to_none=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss = loss_of(name, compiled, patch)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for weight, grad in zip(model.parameters(), grads, strict=True):
        assert grad is not None and weight.grad is not None
        assert (weight.grad - grad).norm() <= 1e-4 * grad.norm()


@pytest.mark.long  # a minute each on a CPU without instructions for bf16
@pytest.mark.parametrize("name", ["swin_unetr_v2", "resenc_fusion_od"])
def test_bfloat16_errors_of_both_are_alike(name: str) -> None:
    """The gradients under autocast are as far from those in float32 with the hand-written passes as without.

    In these tiny networks that is far: the norms of the bottleneck have two voxels.
    """
    exact = gradients(name, "reference", torch.float32)
    errors = {}
    for chosen in ("fused", "reference"):
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(name, chosen, torch.float32)
        assert all(value.isfinite().all() for value in found.values())
        # Of convolutions and linear layers alone: others have few elements, whose error is chance.
        weights = [key for key, value in exact.items() if value.dim() > 1]
        relative = [((found[key] - exact[key]).norm() / exact[key].norm()).item() for key in weights]
        errors[chosen] = sum(relative) / len(relative)
        torch.testing.assert_close(found["loss"], exact["loss"], rtol=1e-2, atol=0)
    assert errors["fused"] < 1.2 * errors["reference"]


def test_estimated_memory_of_the_reference() -> None:
    """The estimate counts the operators of the reference, which keeps several times as much."""
    raw = tiny("swin_fusion_od")
    raw["train"] = {"global_batch": 1, "micro_batch": 1}
    raw["model"]["implementation"] = "reference"
    config = validate(raw)
    task = build_task(config)
    estimate = estimate_memory(task, config, 1, 2, precision=Precision("fp32", "", "cpu"))
    measured = measured_step_bytes(config, "fp32", in_channels=1, out_channels=2)
    assert estimate.tensors == pytest.approx(measured, rel=0.15)
    fused = estimate_memory(task, config_of("swin_fusion_od", "fused"), 1, 2, precision=Precision("fp32", "", "cpu"))
    assert estimate.activations > 1.5 * fused.activations


def test_auto_is_decided_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(switch.AUTOMATIC, "cuda", "reference")
    assert (chosen_implementation("auto", "cuda"), chosen_implementation("auto", "cpu")) == ("reference", "fused")
    assert (chosen_implementation("fused", "cuda"), chosen_implementation("reference", "cpu")) == ("fused", "reference")
    model, _ = build("swin_unetr", "auto")
    assert describe_implementation(model, "auto", "cpu") == "fused (auto on a CPU)"
    set_implementation_(model, "auto", "cuda")
    assert describe_implementation(model, "auto", "cuda") == "reference (auto on a GPU)"
    set_implementation_(model, "reference", "cuda")  # a second time
    assert describe_implementation(model, "reference", "cuda") == "reference (model.implementation)"
    unet, _ = build("unet", "reference")
    assert describe_implementation(unet, "auto", "cpu") == ""
    assert describe_implementation(unet, "fused", "cpu") == "plain (the network has no hand-written backward pass)"
    # What `fusionseg models` counts is for a GPU.
    config = config_of("swin_unetr", "auto")
    assert network_cost(config.model, config.data.patch, in_channels=1, out_channels=2).implementation == "reference"


def test_the_cost_of_the_reference() -> None:
    costs = []
    for chosen in ("fused", "reference"):
        config = config_of("swin_fusion_2_v2", chosen)
        costs.append(network_cost(config.model, config.data.patch, in_channels=1, out_channels=2))
    assert [cost.implementation for cost in costs] == ["fused", "reference"]
    assert costs[0].parameters == costs[1].parameters
    assert costs[0].multiply_adds == costs[1].multiply_adds
    assert costs[1].activation_bytes > 1.5 * costs[0].activation_bytes


def test_a_run_may_be_resumed_with_the_other_one(tmp_path: Path) -> None:
    configs = [config_of("swin_unetr", chosen) for chosen in ("fused", "reference", "auto")]
    assert len({config_hash(config) for config in configs}) == 1
    refuse_other_config(tmp_path, configs[0].to_dict(), configs[1])
    assert "implementation" not in configs[2].to_dict()["model"]  # runs of older versions have the same record


def test_networks_without_a_run() -> None:
    settings = {"feature_size": 12, "depths": [1, 1, 1, 1], "in_channels": 1, "out_channels": 2}
    network = fusionseg.build_network("swin_unetr", implementation="reference", **settings)
    assert implementation_of(network) == "reference"
    assert implementation_of(fusionseg.build_network("swin_unetr", **settings)) == "fused"
    with pytest.raises(UserError, match=r"model\.implementation: "):
        fusionseg.build_network("unet", implementation="fast", in_channels=1, out_channels=2)
