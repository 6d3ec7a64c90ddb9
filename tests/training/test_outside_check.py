"""Parts from outside are tried before a run: each wrong result is one message with the key, and MONAI's parts work."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fusionseg.config import RunConfig, validate
from fusionseg.config.outside_part import source_changes
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.losses.segmentation import build_loss
from fusionseg.metrics.configured import build_metrics
from fusionseg.metrics.segmentation import confusion_matrix, dice_per_class
from fusionseg.models import build_model
from fusionseg.models.cost import network_cost
from fusionseg.models.network_list import default_configs, list_networks
from fusionseg.runs.run_config import config_hash, refuse_other_config
from fusionseg.training.memory.estimate import estimate_memory
from fusionseg.training.optimizer import build_optimizer, learning_rate
from fusionseg.training.outside_check import check_outside_parts, with_present_sources
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.choice import build_task
from fusionseg.utils.errors import UserError

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, in_channels, out_channels, extra=0, idle=False, item=False):
        super().__init__()
        self.layer = nn.Conv3d(in_channels, out_channels + extra, 1)
        self.idle = nn.Linear(2, 2) if idle else None
        self.item = item
    def forward(self, x):
        if self.item:
            x = x * (1 + x.amax().item())
        return self.layer(x)

class Fails(Net):
    def forward(self, x):
        return x @ x.new_zeros(3, 5)

class Dictionary(Net):
    def forward(self, x):
        return {"logits": self.layer(x)}

def number(in_channels): return 3
def no_mean(logits, labels): return (logits - labels) ** 2
def infinite(logits, labels): return logits.sum() / 0
def detached(logits, labels): return logits.detach().mean()
def one_value(prediction, label): return 0.5
def falls(step, steps, lr): return lr - step
class NoOptimizer:
    def __init__(self, params, lr): self.state = {}
    def step(self, closure=None): pass
"""
CPU = torch.device("cpu")
THREE_CLASSES = LabelScheme.of_names(["background", "a", "b"])


@pytest.fixture(autouse=True)
def own(user_folder: Path) -> Path:
    """The working directory, with a module `own` of the user."""
    (user_folder / "own.py").write_text(OWN)
    return user_folder


def config(**raw: Any) -> RunConfig:
    schedule = {"name": "constant", "warmup": 0}
    return validate({"model": {"name": "own:Net"}, "data": {"patch": [16, 16, 16]}, "schedule": schedule, **raw})


def problems(**raw: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        check_outside_parts(config(**raw), CPU, in_channels=2, scheme=THREE_CLASSES)
    return caught.value.problems


@pytest.mark.parametrize(
    ("raw", "key", "expected"),
    [
        ({"model": {"name": "own:Net", "args": {"extra": 1}}}, "model.name", "(1, 4, 16, 16, 16) (expected (1, 3, 16"),
        ({"model": {"name": "own:Fails"}}, "model.name", "own.py, line 18: RuntimeError"),
        ({"model": {"name": "own:Dictionary"}}, "model.name", "gives a dict (expected a tensor"),
        ({"model": {"name": "own:number"}}, "model.name", "gives a int (expected a torch.nn.Module)"),
        ({"loss": {"name": "own:no_mean"}}, "loss.name", "a tensor of shape (2, 3, 16, 16, 16) (expected one number)"),
        ({"loss": {"name": "own:infinite"}}, "loss.name", "inf"),
        ({"loss": {"name": "own:detached"}}, "loss.name", "gradient"),
        ({"loss": {"name": "torch.nn:CrossEntropyLoss"}}, "loss.name", "fails on a trial"),
        ({"optim": {"name": "own:NoOptimizer"}}, "optim.name", "(expected a torch.optim.Optimizer)"),
        ({"metrics": ["own:one_value"]}, "metrics.0.name", "gives 0.5 (expected 2 numbers"),
    ],
)
def test_a_wrong_result_is_one_message(raw: dict[str, Any], key: str, expected: str) -> None:
    (problem,) = problems(**raw)
    assert problem.startswith(f"{key}: ") and expected in problem


def test_the_problems_of_several_parts_are_listed_together() -> None:
    found = problems(model={"name": "own:Fails"}, loss={"name": "own:infinite"}, optim={"name": "own:NoOptimizer"})
    assert [problem.split(":")[0] for problem in found] == ["optim.name", "model.name", "loss.name"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"model": {"name": "own:Nett"}}, "model.name: module own"),
        (
            {"model": {"name": "own:Net", "args": {"in_channels": 1}}},
            "model.args.in_channels: is supplied by fusionseg",
        ),
        ({"model": {"name": "monai.networks.nets:DynUNet"}}, "model.args: DynUNet needs kernel_size, strides"),
        ({"optim": {"name": "torch.optim:LBFGS"}}, "optim.name: torch.optim:LBFGS has no step() without a closure"),
        ({"optim": {"name": "torch.optim:Rprop", "weight_decay": 0.1}}, "optim.weight_decay: torch.optim:Rprop"),
        ({"optim": {"name": "torch.optim:Adam", "betas": [0.9, 0.99]}}, "optim.betas: unknown key; valid: name, lr"),
        ({"schedule": {"name": "own:falls"}}, "schedule.name: own:falls gives -"),
        ({"metrics": ["iuo"]}, "metrics.0.name: there is no metric 'iuo'; did you mean iou?"),
        ({"metrics": ["iou", {"name": "iou"}]}, "metrics: several are called iou; give each a title"),
        ({"metrics": [{"name": "iou", "title": "dice"}]}, "metrics: dice is a column"),
    ],
)
def test_what_the_configuration_refuses(raw: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        config(**raw)
    assert any(problem.startswith(expected) for problem in caught.value.problems), caught.value.problems


def test_parameters_that_nothing_depends_on_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    chosen = config(model={"name": "own:Net", "args": {"idle": True}})
    check_outside_parts(chosen, CPU, in_channels=2, scheme=THREE_CLASSES)
    assert "model.name: the output of own:Net does not depend on idle.weight, idle.bias" in caplog.text


def test_a_network_that_reads_values_is_tried_on_the_device_and_estimated_on_the_cpu() -> None:
    chosen = config(model={"name": "own:Net", "args": {"item": True}})
    check_outside_parts(chosen, CPU, in_channels=2, scheme=THREE_CLASSES)
    estimate = estimate_memory(build_task(chosen), chosen, 2, 3, precision=Precision("fp32", "", "cpu"))
    assert estimate.parameters == 2 * 3 + 3 and estimate.activations > 0
    (listed,) = list_networks(default_configs(["own:Net"]), (16, 16, 16), in_channels=2, out_channels=3)
    assert listed.name == "own:Net" and listed.cost is not None and listed.cost.parameters == 2 * 3 + 3
    cost = network_cost(chosen.model, (16, 16, 16), in_channels=2, out_channels=3)
    assert (cost.parameters, cost.multiply_adds) == (2 * 3 + 3, 2 * 3 * 16**3)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        (
            "DynUNet",
            {
                "kernel_size": [3, 3, 3],
                "strides": [1, 2, 2],
                "upsample_kernel_size": [2, 2],
                "filters": [4, 8, 8],
                "deep_supervision": True,
            },
        ),
        ("SegResNet", {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}),
        ("UNETR", {"feature_size": 2, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2}),
    ],
)
def test_networks_of_monai(name: str, args: dict[str, Any]) -> None:
    chosen = config(model={"name": f"monai.networks.nets:{name}", "args": args}, train={"micro_batch": 2})
    check_outside_parts(chosen, CPU, in_channels=2, scheme=THREE_CLASSES)
    network = build_model(chosen.model, in_channels=2, out_channels=3, patch=chosen.data.patch).train()
    logits = network(torch.randn(1, 2, 16, 16, 16))
    assert isinstance(logits, list) == (name == "DynUNet")
    label = torch.zeros(1, 1, 16, 16, 16, dtype=torch.int64)
    assert build_loss(chosen.loss)(logits, label).isfinite()
    assert network.eval()(torch.randn(1, 2, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


def test_a_loss_of_monai_gets_one_hot_labels_and_probabilities() -> None:
    tversky = config(loss={"name": "monai.losses:TverskyLoss", "args": {"alpha": 0.5, "beta": 0.5}})
    check_outside_parts(tversky, CPU, in_channels=2, scheme=THREE_CLASSES)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 8, 8, 8, generator=generator)
    label = torch.randint(3, (2, 1, 8, 8, 8), generator=generator)
    ours = build_loss(config(loss={"name": "dice", "include_background": True}).loss)(logits, label)
    torch.testing.assert_close(build_loss(tversky.loss)(logits, label), ours)  # Tversky with 1/2 and 1/2 is Dice
    focal = build_loss(config(loss={"name": "monai.losses:FocalLoss", "args": {"gamma": 0.0}}).loss)(logits, label)
    torch.testing.assert_close(focal * 3, F.cross_entropy(logits, label[:, 0]))  # a mean over classes too


def test_an_optimizer_of_torch() -> None:
    chosen = config(optim={"name": "torch.optim:RMSprop", "lr": 0.1, "args": {"momentum": 0.5}})
    check_outside_parts(chosen, CPU, in_channels=2, scheme=THREE_CLASSES)
    weight = torch.nn.Parameter(torch.ones(3))
    (group,) = build_optimizer(chosen.optim, [weight]).param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.1, 1e-5, 0.5)
    assert chosen.optim.states_per_parameter() == pytest.approx(2, abs=0.01)  # square average and momentum
    assert (
        validate({"model": {"name": "unet"}, "optim": {"name": "torch.optim:Rprop"}}).to_dict()["optim"]["lr"] == 1e-4
    )


def test_a_schedule_is_called_with_the_step_the_steps_and_the_rate(own: Path) -> None:
    (own / "rates.py").write_text("def rate(step, steps, lr, share): return lr * share * (step + 1) / steps")
    chosen = config(schedule={"name": "rates:rate", "args": {"share": 0.5}})
    assert learning_rate(3, 8, 0.1, chosen.schedule) == pytest.approx(0.1 * 0.5 * 4 / 8)


def test_metrics_of_monai_and_built_in_ones_agree_with_ours() -> None:
    generator = torch.Generator().manual_seed(2)
    prediction, label = torch.randint(3, (2, 10, 10, 10), generator=generator)
    chosen = config(
        metrics=[
            "dice",
            {"name": "monai.metrics:DiceMetric", "title": "monai_dice"},
            {"name": "monai.metrics:MeanIoU", "args": {"include_background": False}},
            "iou",
            {"name": "monai.metrics:HausdorffDistanceMetric", "args": {"percentile": 95}},
            "hd95_mm",
            "volume_ml_error",
        ]
    )
    check_outside_parts(chosen, CPU, in_channels=2, scheme=THREE_CLASSES)
    spacing = (1.0, 2.0, 3.0)
    found = {name: metric(prediction, label, 3, spacing) for name, metric in build_metrics(chosen.metrics).items()}
    assert found["dice"] == dice_per_class(confusion_matrix(prediction, label, 3))
    assert found["monai_dice"] == pytest.approx(found["dice"])
    assert found["MeanIoU"] == pytest.approx(found["iou"])
    assert found["HausdorffDistanceMetric"] == pytest.approx(found["hd95_mm"], rel=0.05)
    difference = int((prediction == 2).sum()) - int((label == 2).sum())
    assert found["volume_ml_error"][1] == pytest.approx(difference * 6 / 1000)
    empty = build_metrics(chosen.metrics)["iou"](prediction * 0, label * 0, 3, spacing)
    assert all(math.isnan(value) for value in empty)


def test_a_changed_source_is_a_warning_and_no_other_configuration(own: Path) -> None:
    before = config()
    (own / "own.py").write_text(f"{OWN}\n# changed")
    after = config()
    assert config_hash(before) == config_hash(after)
    refuse_other_config(own, before.to_dict(), after)
    (warning,) = source_changes(before.to_dict(), after)
    assert before.to_dict()["model"]["version"] in warning and after.to_dict()["model"]["version"] in warning
    assert with_present_sources(before).to_dict() == after.to_dict()
    other = config(model={"name": "own:Net", "args": {"extra": 1}})
    with pytest.raises(UserError, match=r"model\.args\.extra|model\.args"):
        refuse_other_config(own, before.to_dict(), other)


@pytest.mark.parametrize("partial", [False, True])
def test_a_loss_without_a_mask_is_refused_where_voxels_are_not_annotated(partial: bool) -> None:
    scheme = LabelScheme(THREE_CLASSES.classes, None if partial else 9, sigmoid=partial)
    chosen = config(loss={"name": "monai.losses:DiceLoss"}, metrics=["own:one_value"] if partial else [])
    with pytest.raises(UserError) as caught:
        check_outside_parts(chosen, CPU, in_channels=2, scheme=scheme, partial=partial)
    (problem,) = caught.value.problems  # a metric of a sigmoid output gives one value
    assert problem.startswith("loss.name: monai.losses:DiceLoss takes no mask, and voxels of this data set are")
    built_in = config(loss={"name": "dice_focal"}, metrics=["iou"])
    check_outside_parts(built_in, CPU, in_channels=2, scheme=scheme, partial=partial)
