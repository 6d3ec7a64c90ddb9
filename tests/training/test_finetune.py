"""Fine-tuning: rates by layer, an encoder that stands still for as long as it is told to, and resuming in between."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusionseg.config import RunConfig, validate
from fusionseg.distributed.world import World
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.runs.early_checks import check_places
from fusionseg.training.micro_batches import MicroBatch
from fusionseg.training.network import build_network, start_from
from fusionseg.training.optimizer import build_optimizer
from fusionseg.training.precision import choose_precision
from fusionseg.training.step import TrainStep
from fusionseg.training.tasks.choice import build_task
from fusionseg.training.tasks.fine_tuning import encoder_layers, freeze_encoder, parameter_groups
from fusionseg.utils.errors import UserError

SWIN: dict[str, Any] = {"name": "swin_fusion_od", "feature_size": 12, "depths": [2, 1, 1, 1]}
RESENC: dict[str, Any] = {"name": "resenc_unet", "channels": [4, 8, 8, 8], "blocks": [1, 2, 1, 1]}
UNETR: dict[str, Any] = {"name": "unetr", "feature_size": 4, "hidden_size": 12, "mlp_dim": 8, "num_heads": 2}


def run_config(model: dict[str, Any], finetune: dict[str, Any], **more: Any) -> RunConfig:
    raw = {
        "model": model,
        "finetune": finetune,
        "init_from": "runs/mae",
        "data": {"patch": [64, 32, 32] if model["name"].startswith("swin") else [32, 16, 16]},
        "train": {"steps": 5},
        "schedule": {"warmup": 0},
        "optim": {"lr": 0.01, "weight_decay": 0.1},
        **more,
    }
    return validate(raw)


# -- the configuration -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"model": {"name": "mednext"}, "finetune": {"layer_decay": 0.9}}, "finetune: mednext has no encoder"),
        ({"model": {"name": "segresnet"}, "finetune": {"freeze": "encoder"}}, "finetune: segresnet has no encoder"),
        (
            {"model": {"name": "segresnet_ds", "norm": "batch"}, "finetune": {"freeze": "encoder"}},
            "finetune.freeze: batch norm changes its statistics",
        ),
        ({"model": SWIN, "finetune": {"freeze_steps": 3}}, "finetune.freeze_steps: nothing is frozen"),
        (
            {"model": SWIN, "finetune": {"freeze": "encoder", "layer_decay": 0.9}},
            "finetune.layer_decay: the encoder is",
        ),
        (
            {"model": SWIN, "finetune": {"freeze": "encoder", "freeze_steps": 5}},
            "finetune.freeze_steps: expected fewer than train.steps 5",
        ),
        ({"model": SWIN, "finetune": {"freeze": "encoder"}, "init_from": None}, "finetune.freeze: without init_from"),
        ({"model": SWIN, "finetune": {"restart_schedule": True}}, "finetune.restart_schedule: the schedule restarts"),
        ({"model": SWIN, "finetune": {"layer_decay": 0.9}, "pretrain": {}}, "finetune: is for a segmentation"),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused(raw: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        run_config(**raw)
    (problem,) = caught.value.problems
    assert problem.startswith(told) and ": " in problem.removeprefix("finetune")


# -- groups ----------------------------------------------------------------------------------------------------


def scales(config: RunConfig, model: nn.Module) -> dict[str, float]:
    of = {id(x): group["lr_scale"] for group in parameter_groups(model, config) for x in group["params"]}
    return {name: of[id(x)] for name, x in model.named_parameters() if x.requires_grad}


@pytest.mark.parametrize(
    ("model", "exponents"),
    [
        (
            SWIN,
            {
                "swinViT.patch_embed.proj.weight": 6,
                "swinViT.layers1.0.blocks.0.attn.qkv.weight": 5,
                "swinViT.layers1.0.blocks.1.mlp.linear1.bias": 4,
                "swinViT.layers1.0.downsample.reduction.weight": 4,
                "swinViT.layers2.0.blocks.0.norm1.weight": 3,
                "swinViT.layers3.0.blocks.0.attn.relative_position_bias_table": 2,
                "swinViT.layers4.0.blocks.0.attn.proj.bias": 1,
                "swinViT.layers4.0.downsample.norm.bias": 1,
            },
        ),
        (
            UNETR,
            {
                "vit.patch_embedding.position_embeddings": 13,
                "vit.patch_embedding.patch_embeddings.weight": 13,
                "vit.blocks.0.mlp.linear1.weight": 12,
                "vit.blocks.1.norm1.weight": 11,
                "vit.blocks.10.norm1.weight": 2,
                "vit.blocks.11.attn.qkv.weight": 1,
                "vit.norm.weight": 1,
            },
        ),
        (
            RESENC,
            {
                "encoder.stem.convs.0.conv.weight": 5,
                "encoder.stages.0.blocks.0.conv1.conv.weight": 4,
                "encoder.stages.1.blocks.0.skip.1.norm.bias": 3,
                "encoder.stages.1.blocks.1.conv2.norm.weight": 3,
                "encoder.stages.3.blocks.0.conv1.norm.bias": 1,
            },
        ),
        (
            {"name": "attention_resunet", "channels": [4, 8, 8]},  # without a stem
            {
                "encoder.0.convs.0.conv.weight": 3,
                "encoder.1.convs.1.conv.weight": 2,
                "encoder.2.convs.0.conv.weight": 1,
            },
        ),
        (
            {"name": "segresnet_ds", "init_filters": 4, "blocks_down": [1, 2, 1]},
            {
                "encoder.conv_init.weight": 4,
                "encoder.layers.0.downsample.weight": 3,
                "encoder.layers.1.blocks.1.conv1.weight": 2,
                "encoder.layers.2.blocks.0.norm1.bias": 1,
            },
        ),
    ],
    ids=["swin", "unetr", "resenc", "unet", "segresnet"],
)
def test_deeper_layers_learn_more_slowly(model: dict[str, Any], exponents: dict[str, int]) -> None:
    config = run_config(model, {"layer_decay": 0.5})
    network = build_network(build_task(config), config, torch.device("cpu"), in_channels=1, out_channels=2)
    found = scales(config, network)
    assert {name: found[name] for name in exponents} == {name: 0.5**n for name, n in exponents.items()}
    encoder = f"{config.model.encoder}."
    assert {scale for name, scale in found.items() if not name.startswith(encoder)} == {1.0}
    assert {scale for name, scale in found.items() if name.startswith(encoder)} == {
        0.5**n for n in range(1, max(exponents.values()) + 1)
    }


def test_convolutions_before_a_stage_go_with_its_first_block() -> None:
    layers = encoder_layers(
        [
            "patch_embed.proj.weight",
            "layers1.0.blocks.0.norm1.weight",
            "layers1.0.blocks.1.norm1.weight",
            "layers1.0.downsample.norm.weight",
            "layers2.0.blocks.0.norm1.weight",
            "layers1c.0.layer.conv1.conv.weight",
            "layers2c.0.layer.conv1.conv.weight",
        ],
        SwinConfig.encoder_layer,
    )
    assert list(layers.values()) == [0, 1, 2, 2, 3, 1, 3]


def test_without_fine_tuning_there_is_one_group_in_the_order_of_the_network() -> None:
    config = run_config(UNETR, {})
    network = build_network(build_task(config), config, torch.device("cpu"), in_channels=1, out_channels=2)
    (group,) = parameter_groups(network, config)
    plain = build_optimizer(config.optim, network.parameters()).param_groups[0]["params"]
    assert [id(x) for x in group["params"]] == [id(x) for x in plain]
    assert (group["lr_scale"], group["frozen_steps"]) == (1.0, 0)


def test_from_scratch_treats_the_encoder_as_the_rest() -> None:
    """`init_from`, which does not exist, is not read. Nothing is frozen, and all layers have one rate."""
    for treatment in ({"freeze": "encoder"}, {"freeze": "encoder", "freeze_steps": 2, "layer_decay": 0.5}):
        config = run_config(UNETR, {**treatment, "from_scratch": True})
        network = build_network(build_task(config), config, torch.device("cpu"), in_channels=1, out_channels=2)
        initial = {name: x.clone() for name, x in network.state_dict().items()}
        start_from(network, config, ["image"])
        assert all(torch.equal(x, initial[name]) for name, x in network.state_dict().items())
        (group,) = parameter_groups(network, config)
        assert (group["lr_scale"], group["frozen_steps"]) == (1.0, 0)
        encoder = {id(x) for name, x in network.named_parameters() if name.startswith("vit.blocks")}
        assert encoder & {id(x) for x in group["params"]}


def test_from_scratch_needs_no_weights_to_name() -> None:
    assert run_config(UNETR, {"freeze": "encoder", "from_scratch": True}, init_from=None).start_weights is None
    missing = {"init_from": "no/such/weights", "output": None}
    check_places({**missing, "finetune": {"from_scratch": True}})
    with pytest.raises(UserError, match="init_from"):
        check_places({**missing, "finetune": {"freeze": "encoder"}})
    with pytest.raises(UserError, match="runs/mae"):
        config = run_config(UNETR, {"freeze": "encoder"})
        network = build_network(build_task(config), config, torch.device("cpu"), in_channels=1, out_channels=2)
        start_from(network, config, ["image"])


def test_another_preprocessing_of_the_weights_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = run_config(UNETR, {})
    network = build_network(build_task(config), config, torch.device("cpu"), in_channels=1, out_channels=2)
    old = config.to_dict()
    del old["data"]["intensity"]["nonzero"]  # an older configuration without this key
    torch.save({"model": network.state_dict(), "config": old}, tmp_path / "same.pt")
    old["data"] |= {"spacing": [2.0, 2.0, 2.0], "intensity": {**old["data"]["intensity"], "clip": [0.0, 600.0]}}
    torch.save({"model": network.state_dict(), "config": old}, tmp_path / "other.pt")
    warnings = {}
    for name in ("same.pt", "other.pt"):
        caplog.clear()
        start_from(network, config.model_copy(update={"init_from": str(tmp_path / name)}), ["image"])
        warnings[name] = [entry.message for entry in caplog.records if entry.levelname == "WARNING"]
    assert warnings["same.pt"] == []
    (message,) = warnings["other.pt"]
    assert "data.spacing: [2.0, 2.0, 2.0] -> None" in message and "data.intensity.clip: [0.0, 600.0] -> None" in message


# -- training --------------------------------------------------------------------------------------------------


class Training:
    """A real network and its training step, on random volumes."""

    def __init__(self, config: RunConfig) -> None:
        device = torch.device("cpu")
        self.model = build_network(build_task(config), config, device, in_channels=1, out_channels=2)
        freeze_encoder(self.model, config)
        self.train_step = TrainStep(
            self.model,
            lambda logits, target: nn.functional.cross_entropy(logits, target),
            build_optimizer(config.optim, parameter_groups(self.model, config)),
            choose_precision("fp32", device),
            World.from_environment("cpu"),
            accumulation_steps=1,
            clip_grad=1.0,
        )
        self.lr = config.optim.lr

    def steps(self, first: int, end: int) -> list[dict[str, Tensor]]:
        """Train; the encoder's parameters after each step."""
        history = []
        for step in range(first, end):
            self.train_step(step, [self.batch(step)], self.lr)
            encoder = self.model.get_submodule("vit").named_parameters()
            history.append({name: x.detach().clone() for name, x in encoder if x.requires_grad})
        return history

    def batch(self, step: int) -> MicroBatch:
        generator = torch.Generator().manual_seed(step)
        image = torch.randn(1, 1, 32, 16, 16, generator=generator)
        return MicroBatch((image,), (image[:, 0] > 0).long(), seed=0)

    def decoder(self) -> list[Tensor]:
        return [x.detach().clone() for name, x in self.model.named_parameters() if not name.startswith("vit.")]


def changed(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "novograd"])
def test_an_encoder_is_frozen_for_its_steps_and_learns_from_then_on(name: str) -> None:
    config = run_config(
        UNETR, {"freeze": "encoder", "freeze_steps": 2}, optim={"name": name, "lr": 0.01, "weight_decay": 0.1}
    )
    training = Training(config)
    start = {key: x.detach().clone() for key, x in training.model.get_submodule("vit").named_parameters()}
    decoder = training.decoder()
    first, second, third = training.steps(0, 3)
    assert not changed(first, start) and not changed(second, start)  # bit for bit, with weight decay
    assert changed(third, second) == set(third)
    assert any(not torch.equal(old, new) for old, new in zip(decoder, training.decoder(), strict=True))


def test_a_frozen_encoder_does_not_count_in_the_norm_of_the_gradient() -> None:
    """The same step with the encoder frozen for a while, and for the whole run without a backward pass through it."""
    ways: list[dict[str, Any]] = [{"freeze": "encoder", "freeze_steps": 2}, {"freeze": "encoder"}]
    awhile, ever = (Training(run_config(UNETR, finetune)) for finetune in ways)
    assert not any(x.requires_grad for x in ever.model.get_submodule("vit").parameters())
    for training in (awhile, ever):
        training.steps(0, 1)
    assert awhile.train_step.read() == ever.train_step.read()
    assert all(torch.equal(a, b) for a, b in zip(awhile.decoder(), ever.decoder(), strict=True))
    start = Training(run_config(UNETR, {})).model.get_submodule("vit")
    vit = ever.model.get_submodule("vit").state_dict()
    assert all(torch.equal(vit[name], x) for name, x in start.state_dict().items())


@pytest.mark.parametrize("at", [1, 2])
def test_resuming_while_and_after_it_is_frozen(at: int) -> None:
    config = run_config(UNETR, {"freeze": "encoder", "freeze_steps": 2, "layer_decay": 0.8})
    whole = Training(config)
    whole.steps(0, at)
    saved = io.BytesIO()
    torch.save({"model": whole.model.state_dict(), "train_step": whole.train_step.state_dict()}, saved)
    whole.steps(at, 4)

    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    resumed = Training(config)
    resumed.model.load_state_dict(state["model"])
    resumed.train_step.load_state_dict(state["train_step"])
    resumed.steps(at, 4)

    assert all(torch.equal(x, resumed.model.state_dict()[name]) for name, x in whole.model.state_dict().items())
    assert whole.train_step.read() == resumed.train_step.read()


def test_the_rate_of_a_layer_is_the_schedules_times_its_own() -> None:
    """By plain gradient descent: the update is the rate times the gradient."""
    optim = {"name": "sgd", "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0}
    plain, decayed = (Training(run_config(UNETR, {"layer_decay": decay}, optim=optim)) for decay in (1.0, 0.5))
    for training in (plain, decayed):
        training.lr = 64.0  # far more than a rounding of the weights
    start = {name: x.detach().clone() for name, x in plain.model.named_parameters()}
    ((full,), (slow,)) = plain.steps(0, 1), decayed.steps(0, 1)
    for name, exponent in (("blocks.11.attn.out_proj.weight", 1), ("blocks.9.attn.out_proj.weight", 3)):
        before = start[f"vit.{name}"]
        torch.testing.assert_close(slow[name] - before, (full[name] - before) * 0.5**exponent, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(plain.decoder(), decayed.decoder(), strict=True))
