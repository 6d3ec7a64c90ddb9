"""Requirements on every network of the configuration: training, compilation, prediction, state dict."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import NETWORKS, TINY, tiny
from torch import Tensor, nn

from fusionseg.config import RunConfig, ValidateConfig, validate
from fusionseg.models import build_model
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.sliding_window import predict_logits

CHANNELS, CLASSES = 2, 3
SWINS = [name for name, section in NETWORKS.items() if section is SwinConfig]
# Tracing a Swin or residual encoder takes seconds, and the encoder is the same in all of these networks.
RARELY = [*SWINS[1:-1], "resenc_fusion_2_v2", "resenc_fusion_od"]
TRACED = [pytest.param(name, marks=[pytest.mark.long] if name in RARELY else []) for name in NETWORKS]


def build(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Build the tiny network, with the same weights in each call; return it with its patch."""
    config: RunConfig = validate(tiny(name))
    torch.manual_seed(0)
    model = build_model(config.model, in_channels=CHANNELS, out_channels=CLASSES, patch=config.data.patch)
    return model, config.data.patch


def volume(patch: tuple[int, int, int]) -> Tensor:
    return torch.randn(1, CHANNELS, *patch, generator=torch.Generator().manual_seed(1))


def objective(output: Tensor | list[Tensor]) -> Tensor:
    """A loss that depends on every logit."""
    return sum((part.float().square().mean() for part in _parts(output)), torch.zeros(()))


def _parts(output: Tensor | list[Tensor]) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else output


def test_every_network_has_a_tiny_configuration() -> None:
    assert set(TINY) == {section.__name__ for section in NETWORKS.values()}


# The Swin networks share their blocks, which take long in bf16 on a CPU without instructions for it: two stand for all.
SWIN_IN_BF16 = ("swin_unetr_v2", "swin_fusion_od")


def precisions() -> list[Any]:
    """Every network in fp32 and bf16; most Swin networks in bf16 are long tests."""
    cases = [pytest.param(name, torch.float32, id=f"fp32-{name}") for name in NETWORKS]
    for name in NETWORKS:
        marks = [pytest.mark.long] if name.startswith("swin") and name not in SWIN_IN_BF16 else []
        cases.append(pytest.param(name, torch.bfloat16, id=f"bf16-{name}", marks=marks))
    return cases


@pytest.mark.parametrize(("name", "dtype"), precisions())
def test_every_parameter_has_a_gradient(name: str, dtype: torch.dtype) -> None:
    """DDP needs a gradient of each parameter. Deep supervision gives a list of logits of decreasing resolution."""
    model, patch = build(name)
    image = volume(patch)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = model.train()(image)
    assert isinstance(output, list) == getattr(validate(tiny(name)).model, "deep_supervision", False)
    sizes = [part.shape[2:].numel() for part in _parts(output)]
    assert sizes[0] == image.shape[2:].numel()
    assert all(larger > smaller for larger, smaller in pairwise(sizes))
    assert all(part.shape[:2] == (1, CLASSES) and part.dtype == dtype for part in _parts(output))

    objective(output).backward()
    learning = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert [key for key, grad in learning.items() if grad is None or not grad.isfinite().all()] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_restored_from_a_file(name: str, tmp_path: Path) -> None:
    model, patch = build(name)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again, _ = build(name)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.fill_(0.5)
        again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        image = volume(patch)
        logits = model.eval()(image)
        assert logits.shape == (1, CLASSES, *patch)
        assert torch.equal(again.eval()(image), logits)


@pytest.mark.parametrize("name", TRACED)
def test_compiles_as_one_graph(name: str) -> None:
    """With fullgraph, torch.compile raises an exception at a graph break."""
    torch.compiler.reset()
    model, patch = build(name)
    image = volume(patch)
    compiled = torch.compile(model.train(), backend="eager", fullgraph=True)
    for part, expected in zip(_parts(compiled(image)), _parts(model(image)), strict=True):
        torch.testing.assert_close(part, expected)


class GivenMaps(nn.Module):
    """Gives the maps that an encoder made."""

    def __init__(self, maps: list[Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, image: Tensor, **_: bool) -> list[Tensor]:
        return self.maps


@pytest.mark.parametrize("name", RARELY)
@torch.no_grad()
def test_what_a_network_has_of_its_own_compiles_as_one_graph(name: str) -> None:
    """The encoder and the backward passes of the blocks are those of a network above, and take most of the time."""
    torch.compiler.reset()
    model, patch = build(name)
    image = volume(patch)
    encoder, settings = ("swinViT", {"normalize": True}) if name in SWINS else ("encoder", {})
    if name != "swin_unetr_v2":  # its encoder has residual stages of its own
        setattr(model, encoder, GivenMaps(list(getattr(model, encoder)(image, **settings))))
    compiled = torch.compile(model.train(), backend="eager", fullgraph=True)
    for part, expected in zip(_parts(compiled(image)), _parts(model(image)), strict=True):
        torch.testing.assert_close(part, expected)


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("g++") is None and "g++" not in os.environ.get("FUSIONSEG_REQUIRE", ""),
    reason="torch.compile needs a C++ compiler",
)
@pytest.mark.parametrize("name", ["nnunet_plain", "unetr"])
def test_inductor_has_equal_gradients(name: str) -> None:
    """The gradients are those of the network that is not compiled."""
    torch.compiler.reset()
    model, patch = build(name)
    compiled, _ = build(name)
    compiled.compile(fullgraph=True)
    image = volume(patch)
    for network in (model, compiled):
        objective(network.train()(image)).backward()
    for (key, ours), theirs in zip(compiled.named_parameters(), model.parameters(), strict=True):
        if theirs.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=f"gradient of {key}")


@pytest.mark.parametrize("name", NETWORKS)
def test_predicts_a_volume_by_sliding_window(name: str) -> None:
    """The volume is larger than the patch along one axis and smaller along another."""
    model, patch = build(name)
    image = torch.randn(CHANNELS, patch[0] + 8, patch[1] - 3, patch[2])
    logits = predict_logits(
        model.eval(),
        image,
        background=[0.0] * CHANNELS,
        patch=patch,
        settings=ValidateConfig(overlap=0.25),
        precision=Precision("fp32", "as configured", "cpu"),
        device=torch.device("cpu"),
    )
    assert logits.shape == (CLASSES, *image.shape[1:])
    assert logits.isfinite().all()
