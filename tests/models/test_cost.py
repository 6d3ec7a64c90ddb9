"""Cost of networks, compared with values counted by hand; the list of networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import NETWORKS, tiny
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fusionseg.config import validate
from fusionseg.models import build_model
from fusionseg.models.cost import NetworkCost, network_cost, saved_bytes
from fusionseg.models.network_list import (
    ListedNetwork,
    default_configs,
    list_networks,
    to_json,
    to_markdown,
    to_text,
)
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.training.memory.estimate import estimate_memory
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.choice import build_task
from fusionseg.utils.errors import UserError


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    ("layer", "shape", "multiply_adds"),
    [
        (nn.Conv3d(3, 5, 3, padding=1), (1, 3, 8, 8, 8), 8**3 * 27 * 3 * 5),
        (nn.Conv3d(6, 6, 3, padding=1, groups=6), (1, 6, 8, 8, 8), 8**3 * 27 * 6),
        (nn.ConvTranspose3d(3, 5, 2, stride=2), (1, 3, 8, 8, 8), 16**3 * 3 * 5),
        (nn.Linear(10, 4), (2, 7, 10), 2 * 7 * 10 * 4),
        (Attention(), (2, 3, 7, 10), 2 * (2 * 3) * 7 * 7 * 10),
    ],
    ids=lambda value: type(value).__name__,
)
def test_flop_counter(layer: nn.Module, shape: tuple[int, ...], multiply_adds: int) -> None:
    """Multiply-adds of the layers of networks, on the meta device."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer.to("meta")(torch.empty(shape))
    assert counter.get_total_flops() == 2 * multiply_adds


def test_saved_bytes_by_hand() -> None:
    """The image, and the output of the ReLU, which the ReLU and the second convolution keep together."""
    model = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1))
    image = torch.randn(1, 1, 8, 8, 8)
    assert saved_bytes(model, lambda: model(image)) == 4 * (8**3 + 4 * 8**3)


def test_network_cost_by_hand() -> None:
    """Two levels of plain convolutions with a skip connection."""
    config = validate({"model": {"name": "monai_unet", "channels": [4, 8], "num_res_units": 0}}).model
    cost = network_cost(config, (16, 16, 16), in_channels=1, out_channels=2)
    down, bottom, up = 27 * 4, 27 * 4 * 8, 27 * (4 + 8) * 2
    prelus = 2  # one slope each; none after the last convolution
    assert cost.parameters == down + bottom + up + 4 + 8 + 2 + prelus
    assert cost.multiply_adds == 8**3 * (down + bottom) + 8**3 * up


@pytest.mark.parametrize("name", [name for name, section in NETWORKS.items() if section is not SwinConfig])
def test_activations_on_the_meta_device_are_those_of_a_real_forward_pass(name: str) -> None:
    """Without the Swin networks: on the meta device their attention is that of GPUs, not that of CPUs.

    Residual blocks keep the statistics of the shortcut's norm on a CPU alone.
    """
    config = validate(tiny(name))
    patch = config.data.patch
    model = build_model(config.model, in_channels=1, out_channels=2, patch=patch).train()
    image = torch.randn(1, 1, *patch)
    cost = network_cost(config.model, patch, in_channels=1, out_channels=2)
    assert cost.activation_bytes == pytest.approx(saved_bytes(model, lambda: model(image)), rel=1e-3)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_checkpointing_keeps_fewer_activations() -> None:
    config = validate(tiny("swin_unetr"))
    costs = [
        network_cost(config.model, config.data.patch, in_channels=1, out_channels=2, checkpoint_activations=on)
        for on in (False, True)
    ]
    assert costs[1].activation_bytes < costs[0].activation_bytes
    assert (costs[1].parameters, costs[1].multiply_adds) == (costs[0].parameters, costs[0].multiply_adds)


@pytest.mark.parametrize("name", ["nnunet_plain", "unetr"])
def test_estimated_memory_of_a_training(name: str) -> None:
    """Each parameter counts once: MONAI's DynUNet has two names for each, and UNETR has frozen ones."""
    config = validate({**tiny(name), "train": {"micro_batch": 2, "global_batch": 2}})
    estimate = estimate_memory(build_task(config), config, 1, 2, precision=Precision("fp32", "", "cuda"))
    cost = network_cost(config.model, config.data.patch, in_channels=1, out_channels=2)
    model = build_model(config.model, in_channels=1, out_channels=2, patch=config.data.patch)
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert estimate.parameters == cost.parameters
    assert estimate.weights == 4 * cost.parameters
    assert (estimate.gradients, estimate.optimizer) == (4 * learning, 8 * learning)
    assert estimate.activations >= 2 * cost.activation_bytes  # a batch of two, and the loss


# -- the list ------------------------------------------------------------------------------------------------


def listed(*names: str, patch: tuple[int, int, int] = (32, 32, 32)) -> list[ListedNetwork]:
    return list_networks(default_configs(names), patch, in_channels=1, out_channels=2)


def test_names_of_the_list_are_those_of_the_registry() -> None:
    assert [config.name for config in default_configs()] == list(NETWORKS)
    with pytest.raises(UserError, match=r"'segresent'; did you mean segresnet\?"):
        default_configs(["segresent"])


def test_network_that_cannot_use_the_patch_has_a_problem() -> None:
    segresnet, swin = listed("segresnet", "swin_unetr")
    assert (segresnet.problem, swin.cost) == (None, None)
    assert segresnet.cost is not None and segresnet.cost.parameters == 4_700_914
    assert swin.problem is not None and swin.problem.startswith("needs multiples of 32, at least 64 in one axis")
    assert [row["parameters"] for row in to_json([segresnet, swin])] == [4_700_914, None]
    assert to_text([segresnet, swin]).splitlines()[2].startswith("swin_unetr  - needs multiples of 32")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_a_source(name: str) -> None:
    """The documentation of the section names the paper."""
    (row,) = list_networks(default_configs([name]), (1, 1, 1), in_channels=1, out_channels=2)
    assert any(sign in row.about for sign in ("arXiv:", "doi:")), row.about
    assert row.problem is not None


def test_text_markdown_and_json() -> None:
    rows = [
        ListedNetwork(
            "unet", "A U-Net (doi:1)", "", NetworkCost(5_601_154, 318_049_000_000, 889_400_000, "plain"), None
        ),
        ListedNetwork("deep", "A | family (doi:2)", "", NetworkCost(2_360, 999_600, 12, "plain"), None),
        ListedNetwork("deeper", "A | family (doi:2)", "above 2", NetworkCost(0, 0, 0, "reference"), None),
        ListedNetwork("deepest", "A | family (doi:2)", "", None, "needs multiples of 16"),
    ]
    assert to_text(rows).splitlines() == [
        "network  parameters  multiply-adds  activations  implementation",
        "unet      5,601,154          318 G       889 MB           plain",
        "deep          2,360         1.00 M         12 B           plain",
        "deeper            0              0          0 B       reference",
        "deepest  - needs multiples of 16",
    ]
    assert to_markdown(rows).splitlines()[2:] == [
        "| `unet` | A U-Net (doi:1) | 5,601,154 | 318 G | 889 MB |",
        "| `deep` | A \\| family (doi:2) | 2,360 | 1.00 M | 12 B |",
        "| `deeper` | above 2 | 0 | 0 | 0 B |",
        "| `deepest` | as above | - needs multiples of 16 |  |  |",
    ]
    unknown: Any = to_json(rows)[3]
    assert unknown == {
        "name": "deepest",
        "about": "A | family (doi:2)",
        "settings": "",
        "parameters": None,
        "multiply_adds": None,
        "activation_bytes": None,
        "implementation": None,
        "problem": "needs multiples of 16",
    }
