"""MONAI's networks: the same state dict and output as MONAI's own; wrong settings are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.mednext import create_mednext
from monai.networks.nets.segresnet_ds import SegResNetDS
from monai.networks.nets.unetr import UNETR
from monai.networks.nets.vit import ViT
from torch import Tensor, nn

from fusionseg.config import RunConfig, validate
from fusionseg.models import build_model
from fusionseg.models.cost import network_cost
from fusionseg.models.networks.mednext import MedNeXtConfig
from fusionseg.utils.errors import UserError

COMMON: dict[str, Any] = {"spatial_dims": 3, "in_channels": 2, "out_channels": 3}
UNETR_SETTINGS = {"feature_size": 2, "hidden_size": 12, "mlp_dim": 16, "num_heads": 2}
ANISOTROPIC = {
    "filters": [4, 8, 8, 12, 12],
    "kernels": [[1, 3, 3], 3, 3, 3, 5],
    "strides": [[1, 2, 2], 2, 2, [2, 1, 2]],
}


def dynunet(res_block: bool) -> DynUNet:
    return DynUNet(
        **COMMON,
        kernel_size=[(1, 3, 3), 3, 3, 3, 5],
        strides=[1, (1, 2, 2), 2, 2, (2, 1, 2)],
        upsample_kernel_size=[(1, 2, 2), 2, 2, (2, 1, 2)],
        filters=[4, 8, 8, 12, 12],
        norm_name=("instance", {"affine": True}),
        deep_supervision=True,
        deep_supr_num=2,
        res_block=res_block,
        trans_bias=True,
    )


# `model` section, patch, and MONAI's network
CASES: list[tuple[dict[str, Any], tuple[int, int, int], Any]] = [
    (
        {"name": "unetr", **UNETR_SETTINGS},
        (32, 16, 48),
        lambda: UNETR(**COMMON, img_size=(32, 16, 48), **UNETR_SETTINGS),
    ),
    ({"name": "nnunet_plain", **ANISOTROPIC}, (8, 16, 16), lambda: dynunet(False)),
    ({"name": "nnunet_residual", **ANISOTROPIC}, (8, 16, 16), lambda: dynunet(True)),
    ({"name": "mednext"}, (32, 16, 16), lambda: create_mednext("S", **COMMON, deep_supervision=True)),
    (
        {"name": "segresnet_ds", "init_filters": 4, "blocks_down": [1, 2, 1]},
        (16, 16, 16),
        lambda: SegResNetDS(**COMMON, init_filters=4, blocks_down=(1, 2, 1), norm="instance", dsdepth=2),
    ),
]


def build(settings: dict[str, Any], patch: tuple[int, int, int] = (32, 32, 32)) -> nn.Module:
    config: RunConfig = validate({"model": settings, "data": {"patch": list(patch)}})
    return build_model(config.model, in_channels=2, out_channels=3, patch=patch)


def refusal(settings: dict[str, Any], patch: tuple[int, int, int] = (96, 96, 96)) -> str:
    with pytest.raises(UserError) as caught:
        validate({"model": settings, "data": {"patch": list(patch)}})
    (problem,) = caught.value.problems
    return problem


def as_list(output: Any) -> list[Tensor]:
    """Convert the logits of deep supervision to a list: MONAI gives a list, a tuple or, in DynUNet, one tensor."""
    if isinstance(output, Tensor):
        return list(output.unbind(1)) if output.dim() == 6 else [output]
    return list(output)


@pytest.mark.parametrize(("settings", "patch", "theirs"), CASES, ids=[case[0]["name"] for case in CASES])
def test_network_is_that_of_monai(settings: dict[str, Any], patch: tuple[int, int, int], theirs: Any) -> None:
    """The state dict has the same keys; the logits are equal in training and in evaluation mode."""
    torch.manual_seed(0)
    ours, monais = build(settings, patch), theirs()
    assert list(ours.state_dict()) == list(monais.state_dict())
    ours.load_state_dict(monais.state_dict())
    image = torch.randn(2, 2, *patch)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(image), monais.eval()(image))
        output = ours.train()(image)
        expected = as_list(monais.train()(image))
        assert isinstance(output, Tensor) == (len(expected) == 1)
        found = as_list(output)
        if isinstance(monais, DynUNet):  # DynUNet resizes them to full resolution
            found = [F.interpolate(logits, patch) for logits in found]
    for logits, other in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, other)


@pytest.mark.parametrize("name", ["nnunet_plain", "mednext", "segresnet_ds"])
def test_output_without_deep_supervision_is_one_tensor(name: str) -> None:
    with torch.device("meta"):
        model = build({"name": name, "deep_supervision": False}, (64, 32, 32)).train()
        output = model(torch.empty(1, 2, 64, 32, 32))
    assert isinstance(output, Tensor)
    assert [key for key in model.state_dict() if "deep_supervision" in key or "out_blocks" in key] == []


def test_unetr_freezes_unused_parameters() -> None:
    """MONAI's blocks have cross-attention parameters that are not used. test_every_network covers all others."""
    model = build({"name": "unetr", **UNETR_SETTINGS})
    frozen = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"vit.blocks.{n}.norm_cross_attn.{part}" for n in range(12) for part in ("weight", "bias")}


def test_unetr_with_sincos_position_embedding(recwarn: pytest.WarningsRecorder) -> None:
    """The embedding is that of MONAI, without MONAI's warning."""
    torch.set_warn_always(True)
    model: Any = build({"name": "unetr", "pos_embed": "sincos", **UNETR_SETTINGS}, (32, 16, 48))
    torch.set_warn_always(False)
    assert [str(warning.message) for warning in recwarn] == []
    found = model.vit.patch_embedding.position_embeddings
    vit: Any = ViT(2, (32, 16, 48), 16, hidden_size=12, mlp_dim=16, num_heads=2, pos_embed_type="sincos")
    assert torch.equal(found, vit.patch_embedding.position_embeddings)
    assert not found.requires_grad
    assert found.std() > 0.1


def test_unetr_needs_the_patch() -> None:
    config = validate({"model": {"name": "unetr"}})
    with pytest.raises(ValueError, match="unetr"):
        build_model(config.model, in_channels=1, out_channels=2)


@pytest.mark.parametrize(
    ("norm", "layer"), [("instance", nn.InstanceNorm3d), ("batch", nn.BatchNorm3d), ("group", nn.GroupNorm)]
)
def test_nnunet_norms(norm: str, layer: type[nn.Module]) -> None:
    model = build({"name": "nnunet_residual", "filters": [8, 8, 16], "norm": norm})
    norms = [module for key, module in model.named_modules() if "norm" in key.split(".")[-1]]
    assert norms and all(isinstance(module, layer) and module.weight is not None for module in norms)


def test_nnunet_has_no_dropout_after_the_heads() -> None:
    model = build({"name": "nnunet_plain", "filters": [4, 4, 4], "dropout": 0.5}, (16, 16, 16)).train()
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.5}
    with torch.no_grad():
        assert all(logits.ne(0).all() for logits in model(torch.randn(1, 2, 16, 16, 16)))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(
    ("size", "small", "large"),
    [
        ("S", (5.6, 130), (5.9, 169)),
        ("B", (10.5, 170), (11.0, 208)),
        ("M", (17.6, 248), (18.3, 308)),
        ("L", (61.8, 500), (63.0, 564)),
    ],
)
def test_mednext_has_the_cost_that_its_authors_state(size: Any, kernel: Any, small: Any, large: Any) -> None:
    """Millions of parameters and 10^9 multiply-adds at 128^3: README.md of github.com/MIC-DKFZ/MedNeXt."""
    config = MedNeXtConfig(name="mednext", size=size, kernel_size=kernel)
    cost = network_cost(config, (128, 128, 128), in_channels=1, out_channels=2)
    parameters, multiply_adds = small if kernel == 3 else large
    assert cost.parameters / 1e6 == pytest.approx(parameters, rel=0.02)
    assert cost.multiply_adds / 1e9 == pytest.approx(multiply_adds, rel=0.03)


@pytest.mark.parametrize(
    ("settings", "patch", "expected"),
    [
        ({"name": "unetr"}, (16, 16, 16), None),
        ({"name": "unetr"}, (96, 90, 96), "needs multiples of 16, not [96, 90, 96]: try [96, 96, 96]"),
        ({"name": "unetr"}, (4, 4, 4), "needs multiples of 16, not [4, 4, 4]: try [16, 16, 16]"),
        ({"name": "nnunet_plain"}, (64, 32, 32), None),
        ({"name": "nnunet_plain"}, (32, 32, 32), "multiples of 32, at least twice that in one axis, not [32, 32, 32]"),
        ({"name": "nnunet_plain", **ANISOTROPIC}, (8, 8, 32), None),
        ({"name": "nnunet_plain", **ANISOTROPIC}, (8, 8, 16), "[8, 8, 16], at least twice that in one axis, not [8, 8"),
        ({"name": "nnunet_plain", **ANISOTROPIC}, (12, 16, 16), "not [12, 16, 16]: try [16, 16, 16]"),
        ({"name": "mednext"}, (32, 16, 16), None),
        ({"name": "mednext"}, (16, 16, 24), "needs multiples of 16, at least 32 in one axis, not [16, 16, 24]"),
        ({"name": "segresnet_ds", "blocks_down": [1, 1], "deep_supervision": False}, (4, 2, 2), None),
        ({"name": "segresnet_ds"}, (20, 16, 16), "needs multiples of 8"),
    ],
)
def test_patch_sizes(settings: dict[str, Any], patch: tuple[int, int, int], expected: str | None) -> None:
    """Accepted patches can be used, and so can those that the message of a refused patch suggests."""
    if expected is not None:
        problem = refusal(settings, patch)
        assert problem.startswith(f"data.patch: {settings['name']} ")
        assert expected in problem
        advised = problem.split("try [")[1].rstrip("]")
        patch = tuple(int(size) for size in advised.split(", "))  # type: ignore[assignment]
    with torch.device("meta"):
        output = build(settings, patch).train()(torch.empty(1, 2, *patch))
    assert as_list(output)[0].shape == (1, 3, *patch)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "unetr", "num_heads": 7}, "model.num_heads: 7 does not divide hidden_size 768"),
        ({"name": "unetr", "hidden_size": 64, "num_heads": 4, "pos_embed": "sincos"}, "model.hidden_size: 64 is no "),
        ({"name": "nnunet_plain", "filters": [8, 8]}, "model.filters: expected at least three levels"),
        ({"name": "nnunet_plain", "filters": [8, 8, 12], "norm": "group"}, "model.filters: expected multiples of 8"),
        (
            {"name": "nnunet_plain", "kernels": [3, [1, 3, 3]]},
            "model.kernels: expected 6 odd numbers",
        ),
        ({"name": "nnunet_plain", "filters": [8, 8, 8], "kernels": [3, 2, 3]}, "model.kernels: expected 3 odd numbers"),
        ({"name": "nnunet_plain", "filters": [8, 8, 8], "strides": [2, 4]}, "model.strides: expected 2 entries, one "),
        ({"name": "nnunet_plain", "strides": "2"}, "model.strides: expected a list such as [..., ...], got '2'"),
        ({"name": "mednext", "size": "XL"}, "model.size: unknown value 'XL'; did you mean L? Valid: S, B, M, L"),
        ({"name": "mednext", "feature_size": 3}, "model.feature_size: unknown key; "),
        ({"name": "segresnet_ds", "blocks_down": [1, 1]}, "model.deep_supervision: needs at least 3 levels"),
        ({"name": "segresnet_ds", "blocks_down": [2]}, "model.blocks_down: expected at least two levels"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(settings: dict[str, Any], expected: str) -> None:
    assert refusal(settings).startswith(expected)
