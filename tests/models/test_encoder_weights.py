"""Loading of pre-trained encoders: other names, other input channels, other grids of tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from monai.networks.nets.swin_unetr import SwinTransformer, SwinUNETR
from monai.networks.nets.vitautoenc import ViTAutoEnc
from torch import Tensor, nn

from fusionseg.config.pretraining import DecoderConfig, PretrainConfig
from fusionseg.models import build_model
from fusionseg.models.masked import build_masked
from fusionseg.models.networks.resenc import ResEncConfig
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.models.networks.unetr import UNETRConfig
from fusionseg.models.weights.loading import load_weights, read_state
from fusionseg.utils.errors import UserError

State = dict[str, Tensor]
SWIN: dict[str, Any] = {"feature_size": 12, "depths": (1, 1, 1, 1), "window_size": 4}
VIT: dict[str, Any] = {"hidden_size": 12, "mlp_dim": 8, "num_heads": 2}


def swin(name: Any = "swin_unetr", in_channels: int = 1, out_channels: int = 2) -> nn.Module:
    return build_model(SwinConfig(name=name, **SWIN), in_channels=in_channels, out_channels=out_channels)


def unetr(patch: tuple[int, int, int], in_channels: int = 1) -> nn.Module:
    config = UNETRConfig(name="unetr", feature_size=4, **VIT)
    return build_model(config, in_channels=in_channels, out_channels=2, patch=patch)


@cache
def encoder_state() -> State:
    """State dict of MONAI's Swin transformer alone."""
    return SwinTransformer(1, 12, (4,) * 3, (2,) * 3, SWIN["depths"], (3, 6, 12, 24)).state_dict()


def copied(model: nn.Module) -> State:
    return {name: x.clone() for name, x in model.state_dict().items()}


def authors_name(name: str) -> str:
    return name.replace("mlp.linear", "mlp.fc")


OTHERS = {"rotation_head.weight": torch.zeros(4, 192), "mask_token": torch.zeros(1, 12)}
RENAMED: dict[str, Callable[[str], str]] = {
    "a pre-training run": lambda name: f"swinViT.{name}",
    "the encoder alone": lambda name: name,
    "model_swinvit.pt": lambda name: f"module.{authors_name(name)}",
    "the authors' pre-training before 2022-08": lambda name: f"module.swin_vit.{authors_name(name)}",
    "ssl_pretrained_weights.pth": lambda name: "encoder." + name.replace(".0.", ".0.0.", 1),
    "Lightning": lambda name: f"model.swinViT.{name}",
    "a student in DDP": lambda name: f"module.student.backbone.swinViT.{name}",
    "torch.compile of DDP": lambda name: f"module._orig_mod.swinViT.{name}",
    "torch.compile of a part": lambda name: f"swinViT.{name}".replace("layers1.", "layers1._orig_mod."),
}


@pytest.mark.parametrize("target", ["swin_unetr", "swin_fusion_od"])
@pytest.mark.parametrize("file", RENAMED)
def test_encoder_with_other_names_is_loaded(tmp_path: Path, file: str, target: str) -> None:
    prefix = RENAMED[file]("").rpartition("swin")[0]
    state = {RENAMED[file](name): x for name, x in encoder_state().items()}
    others = {prefix + name: x for name, x in OTHERS.items()}
    torch.save({"epoch": 1, "state_dict": {**state, **others}}, tmp_path / "encoder.pt")

    model = swin(target)
    before = copied(model)
    report = load_weights(model, read_state(tmp_path / "encoder.pt"), encoder="swinViT", min_share=1.0)

    after = model.state_dict()
    assert all(torch.equal(after[f"swinViT.{name}"], x) for name, x in encoder_state().items())
    assert all(torch.equal(after[name], x) for name, x in before.items() if not name.startswith("swinViT."))
    assert report.encoder is not None and report.encoder_only
    count = len(encoder_state())
    assert (report.encoder.matched, report.encoder.total, report.encoder.share) == (count, count, 1.0)
    assert report.share < 0.5
    assert set(report.unexpected) == set(others) and not report.mismatched and not report.resized
    assert f"loaded {count} of {count} tensors of the encoder (100.0 % of its parameters, " in str(report)
    assert f"{100 * report.share:.1f} % of the network's)" in str(report)


@pytest.mark.parametrize("method", ["blackout", "token", "mae"])
@pytest.mark.parametrize("name", ["swin_fusion_od", "unetr"])
def test_encoder_of_our_pretraining_is_loaded(name: Any, method: Any) -> None:
    patch = (64, 64, 32)
    config = UNETRConfig(name="unetr", feature_size=4, **VIT) if name == "unetr" else SwinConfig(name=name, **SWIN)
    pretrain = PretrainConfig(method=method, ratio=0.5, block=32, decoder=DecoderConfig(width=8, depth=1))
    trained = build_masked(config, pretrain, in_channels=1, patch=patch).state_dict()
    model = build_model(config, in_channels=1, out_channels=2, patch=patch)
    report = load_weights(model, trained, encoder=config.encoder, min_share=1.0)
    own = model.state_dict()
    taken = [name for name in trained if name.startswith(f"{config.encoder}.")]
    assert report.encoder is not None and report.matched == report.encoder.total == len(taken)
    assert all(torch.equal(own[name], trained[name]) for name in taken)
    left = {name.split(".")[0] for name in report.unexpected}
    assert left == {"decoder", "mask_token"} if method == "token" else {"decoder"}


@pytest.mark.parametrize(
    ("there", "here"),
    [("resenc_unet", "resenc_unet"), ("resenc_fusion_od", "resenc_fusion_od"), ("resenc_unet", "resenc_fusion_od")],
)
def test_a_pretrained_residual_encoder_unet_is_loaded_with_its_decoder(there: str, here: str) -> None:
    """All but the heads. With as many classes as channels the layer that gives intensities would fit as a head."""

    def config(name: str) -> ResEncConfig:
        return ResEncConfig.model_validate({"name": name, "channels": [4, 8, 8, 8], "blocks": [1, 1, 1, 1]})

    trained = build_masked(config(there), PretrainConfig(block=8), in_channels=2, patch=(16, 16, 16)).state_dict()
    model = build_model(config(here), in_channels=2, out_channels=2)
    before = copied(model)
    report = load_weights(model, trained, encoder=config(here).encoder, min_share=0.9)
    assert report.encoder is not None and (report.encoder.share, report.mismatched) == (1.0, ())
    own = model.state_dict()
    taken = {name for name in trained if not name.startswith(("reconstruct.", "hidden_token"))}
    assert all(torch.equal(own[name], trained[name]) for name in taken)
    assert {name.split(".")[0] for name in taken} >= {"encoder", "decoder"}
    left = {name for name in own if name not in taken}
    assert left and all(torch.equal(own[name], before[name]) for name in left)
    new = "fusion." if there != here else "decoder.seg_layers."
    assert all(name.startswith(("decoder.seg_layers.", new)) for name in left)
    assert set(report.unexpected) == {"reconstruct.weight", "reconstruct.bias", "hidden_token"}


def test_change_of_the_prefix_is_reported() -> None:
    state = {f"module.{name}": x for name, x in encoder_state().items()}
    report = load_weights(swin(), state, encoder="swinViT")
    assert "; renamed module.* to swinViT.*; not found: encoder1." in str(report)


def test_first_of_two_matching_encoders_is_loaded() -> None:
    both = [
        (f"{who}.{name}", x + add)
        for who, add in (("student", 0), ("teacher", 1))
        for name, x in encoder_state().items()
    ]
    model = swin()
    report = load_weights(model, dict(both), encoder="swinViT")
    assert torch.equal(model.state_dict()["swinViT.patch_embed.proj.bias"], encoder_state()["patch_embed.proj.bias"])
    assert {name.split(".")[0] for name in report.unexpected} == {"teacher"}


def test_weights_of_monais_swin_unetr_load_into_a_fused_network() -> None:
    theirs = SwinUNETR(in_channels=1, out_channels=14, **SWIN).state_dict()
    model = swin("swin_fusion_od")
    report = load_weights(model, theirs, encoder="swinViT")
    own = model.state_dict()
    taken = [name for name in theirs if not name.startswith(("out.", "encoder10."))]
    assert report.matched == len(taken) and all(torch.equal(own[name], theirs[name]) for name in taken)
    assert {name for name, _, _ in report.mismatched} == {"out.conv.conv.weight", "out.conv.conv.bias"}
    assert {name.split(".")[0] for name in report.unexpected} == {"encoder10"}
    assert not report.encoder_only and "; 100.0 % of the encoder's)" in str(report)


def test_part_of_an_encoder_below_min_share_is_refused() -> None:
    model = swin()
    before = copied(model)
    half = {name: x for name, x in encoder_state().items() if "layers4" not in name}
    with pytest.raises(UserError, match=r"% of the network's parameters .* 2\d\.\d % of its encoder's .*at least 50 %"):
        load_weights(model, half, encoder="swinViT")
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    load_weights(model, half, encoder="swinViT", min_share=0.2)


def test_encoder_of_another_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"vit\.pt: only 0\.0 % of the .* 0\.0 % of its encoder's"):
        load_weights(swin(), unetr((32, 16, 16)).state_dict(), encoder="swinViT", min_share=0.01, source="vit.pt")


# -- input channels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "there", "here", "resized"),
    [("swin_unetr", 1, 4, 3), ("swin_unetr", 4, 1, 3), ("swin_fusion_od_large", 2, 3, 5)],
)
def test_logits_are_equal_after_resizing_the_input_channels(name: str, there: int, here: int, resized: int) -> None:
    """With the same image in every channel. Patch embedding, first skip and fusion sources all read the volume."""
    trained, model = swin(name, there).eval(), swin(name, here).eval()
    report = load_weights(model, trained.state_dict(), encoder="swinViT")
    assert (report.share, len(report.resized)) == (1.0, resized)
    assert f"resized from {there} to {here} channels: swinViT.patch_embed.proj.weight, " in str(report)
    image = torch.randn(1, 1, 64, 32, 32)
    with torch.no_grad():
        expected = trained(image.expand(-1, there, -1, -1, -1))
        torch.testing.assert_close(model(image.expand(-1, here, -1, -1, -1)), expected, rtol=1e-3, atol=1e-3)


def test_weights_of_one_channel_are_divided_among_three() -> None:
    state = {f"vit.{name}": x for name, x in vit_autoencoder(1, (32, 16, 16)).items()}
    model = unetr((32, 16, 16), in_channels=3)
    load_weights(model, state, encoder="vit")
    old, new = (x["vit.patch_embedding.patch_embeddings.weight"] for x in (state, model.state_dict()))
    torch.testing.assert_close(new, old.expand(-1, 3, -1, -1, -1) / 3)


def test_only_convolutions_that_read_the_volume_are_resized() -> None:
    """In a transposed convolution the same axis of the weight holds the classes."""

    def small(channels: int, classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv3d(channels, 6, 3), nn.Conv3d(6, 6, 1), nn.ConvTranspose3d(6, classes, 2))

    model = small(3, 3)
    report = load_weights(model, small(2, 2).state_dict())
    assert [name for name, _ in report.resized] == ["0.weight"]
    assert [name for name, _, _ in report.mismatched] == ["2.weight", "2.bias"]


# -- tokens ----------------------------------------------------------------------------------------------------


def vit_autoencoder(channels: int, size: tuple[int, int, int], network: Any = ViTAutoEnc, **more: Any) -> State:
    state: State = network(channels, size, 16, **VIT, **more).state_dict()
    return state


@pytest.mark.parametrize(
    ("network", "more"), [(ViTAutoEnc, {}), (MaskedAutoEncoderViT, {"decoder_hidden_size": 12, "decoder_num_heads": 2})]
)
@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_weights_of_monais_vision_transformers_load_into_unetr(network: Any, more: dict[str, Any]) -> None:
    state = vit_autoencoder(1, (32, 32, 16), network, **more)
    model = unetr((32, 32, 16))
    report = load_weights(model, state, encoder="vit", min_share=1.0)
    assert report.encoder is not None and report.encoder.matched == report.encoder.total and not report.resized
    own = model.state_dict()
    assert torch.equal(own["vit.blocks.11.attn.qkv.weight"], state["blocks.11.attn.qkv.weight"])
    last_norm = state["norm.bias"] if "norm.bias" in state else state["blocks.12.bias"]
    assert torch.equal(own["vit.norm.bias"], last_norm)
    assert all(name.startswith(("conv3d", "cls_token", "mask_tokens", "decoder_")) for name in report.unexpected)


def positions(grid: tuple[int, int, int]) -> Tensor:
    """Embedding (1, n, 12) whose first three channels are the position of the token's centre, 0 to 1."""
    axes = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in grid), indexing="ij")
    return torch.cat([torch.stack(axes, -1).reshape(1, -1, 3), torch.zeros(1, axes[0].numel(), 9)], dim=-1)


@pytest.mark.parametrize(
    ("there", "here", "token", "change"),
    [
        ((4, 4, 2), (2, 2, 1), 0, "from 4x4x2 to 2x2x1 tokens"),  # the same proportions
        ((4, 4, 4), (2, 2, 2), 0, "from 4x4x4 to 2x2x2 tokens"),
        ((4, 4, 4), (2, 2, 1), 0, "from 4x4x4 to 2x2x1 tokens"),  # a cube
        ((4, 4, 4), (2, 2, 2), 1, "from 4x4x4 to 2x2x2 tokens, without the class token"),
        ((2, 2, 2), (2, 2, 2), 1, "from 2x2x2 to 2x2x2 tokens, without the class token"),
    ],
)
def test_position_embedding_of_another_grid_is_interpolated(
    there: tuple[int, int, int], here: tuple[int, int, int], token: int, change: str
) -> None:
    x, y, z = (16 * n for n in here)
    model = unetr((x, y, z))
    name = "vit.patch_embedding.position_embeddings"
    state = copied(model)
    state[name] = torch.cat([torch.full((1, token, 12), 9.0), positions(there)], dim=1)
    report = load_weights(model, state, encoder="vit", min_share=1.0)
    assert report.resized == ((name, change),)
    torch.testing.assert_close(model.state_dict()[name], positions(here))


def test_position_embedding_of_an_unknown_grid_is_not_loaded() -> None:
    model = unetr((32, 32, 16))
    name = "vit.patch_embedding.position_embeddings"
    before = copied(model)
    report = load_weights(model, {**before, name: torch.ones(1, 6, 12)}, encoder="vit")
    assert report.mismatched == ((name, (1, 4, 12), (1, 6, 12)),)
    assert torch.equal(model.state_dict()[name], before[name])


@pytest.mark.parametrize("channels", [1, 2])
def test_linear_patch_embedding_becomes_a_convolution(channels: int) -> None:
    linear = PatchEmbeddingBlock(2, (32, 16, 16), 16, 12, 2, proj_type="perceptron")
    model = unetr((32, 16, 16), in_channels=channels)
    state = {f"patch_embedding.{name}": x for name, x in linear.state_dict().items()}
    report = load_weights(model, state, encoder="vit", min_share=0.1)
    image = torch.randn(1, 1, 32, 16, 16)
    embedded = model.get_submodule("vit.patch_embedding")(image.expand(-1, channels, -1, -1, -1))
    torch.testing.assert_close(embedded, linear(image.expand(-1, 2, -1, -1, -1)), rtol=1e-4, atol=1e-4)
    (done,) = report.resized
    change = "from a linear layer to a convolution" if channels == 2 else "from 2 to 1 channels"
    assert done == ("vit.patch_embedding.patch_embeddings.weight", change)
