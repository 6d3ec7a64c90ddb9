"""Losses with ignored voxels, sigmoid outputs and partly annotated cases: exact, and equal to simpler computations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

from fusionseg.config.outside import PartError
from fusionseg.data.labels.scheme import IGNORE, LabelScheme, Region
from fusionseg.losses.named.dice import LossConfig
from fusionseg.losses.named.outside import OutsideLoss
from fusionseg.losses.segmentation import Logits, PartialLabel, Target, build_loss

CLASSES = LabelScheme.of_names(["background", "oedema", "necrosis", "enhancing"]).classes
SOFTMAX = LabelScheme(CLASSES, ignore=9)
REGIONS = LabelScheme(CLASSES, 9, (Region("whole", (1, 2, 3), 1), Region("core", (2, 3), 2), Region("live", (3,), 3)))
OPTIONS: list[dict[str, Any]] = [
    {"name": "dice_ce"},
    {"name": "dice", "squared": True},
    {"name": "dice", "batch_dice": True, "include_background": True},
    {"name": "dice_focal", "gamma": 1.5},
    {"name": "cross_entropy"},
]
SCHEMES = {"softmax": SOFTMAX, "regions": REGIONS}
every_loss = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "_".join(map(str, options.values())))
every_output = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())


def random_batch(scheme: LabelScheme, size: int = 2, shape: tuple[int, ...] = (6, 5, 4)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(size, scheme.num_outputs, *shape, generator=generator)
    return logits, torch.randint(0, 4, (size, 1, *shape), generator=generator)


def loss_and_gradient(
    scheme: LabelScheme | None, options: dict[str, Any], logits: Logits, target: Target
) -> tuple[Tensor, list[Tensor]]:
    parts = [logits] if isinstance(logits, Tensor) else list(logits)
    leaves = [part.clone().requires_grad_() for part in parts]
    loss = build_loss(LossConfig.model_validate(options), scheme)(
        leaves[0] if isinstance(logits, Tensor) else leaves, target
    )
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


@every_output
@every_loss
def test_the_loss_is_that_of_the_annotated_voxels_alone(scheme: LabelScheme, options: dict[str, Any]) -> None:
    logits, label = random_batch(scheme)
    ignored = label.clone()
    ignored[:, :, 4:] = IGNORE
    loss, (gradient,) = loss_and_gradient(scheme, options, logits, ignored)
    whole = SOFTMAX.of_names(SOFTMAX.names) if scheme is SOFTMAX else scheme  # of MONAI and torch
    expected, (expected_gradient,) = loss_and_gradient(whole, options, logits[:, :, :4], label[:, :, :4])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[:, :, :4], expected_gradient)
    torch.testing.assert_close(
        loss_and_gradient(scheme, options, logits, label)[0], loss_and_gradient(whole, options, logits, label)[0]
    )


@every_output
@every_loss
def test_what_lies_under_ignored_voxels_changes_no_bit(scheme: LabelScheme, options: dict[str, Any]) -> None:
    logits, label = random_batch(scheme)
    label[:, :, 1:3, 2:] = IGNORE
    label[1, :, :, :, 1:] = IGNORE
    coarse = torch.randn(2, scheme.num_outputs, 3, 5, 2, generator=torch.Generator().manual_seed(1))
    loss, gradients = loss_and_gradient(scheme, options, [logits, coarse], label)
    assert loss.isfinite() and loss > 0
    other = label.expand_as(logits) == IGNORE
    coarse_ignored = F.interpolate(label.float(), coarse.shape[2:], mode="nearest-exact") == IGNORE
    for value in (1e30, float("inf"), float("nan")):
        changed = [logits.masked_fill(other, value), coarse.masked_fill(coarse_ignored, value)]
        again, gradients_again = loss_and_gradient(scheme, options, changed, label)
        assert torch.equal(loss, again)
        assert all(torch.equal(one, two) for one, two in zip(gradients, gradients_again, strict=True))
    assert not gradients[0][other].any() and gradients[0][~other].any()
    assert not gradients[1].masked_select(coarse_ignored).any() and gradients[1].any()


@every_loss
def test_an_output_that_a_case_does_not_annotate_gets_no_gradient(options: dict[str, Any]) -> None:
    logits, label = random_batch(REGIONS)
    annotated = torch.tensor([[True, False, True], [True, True, True]])
    loss, (gradient,) = loss_and_gradient(REGIONS, options, logits, PartialLabel(label, annotated))
    assert not gradient[0, 1].any()
    whole, (whole_gradient,) = loss_and_gradient(REGIONS, options, logits, label)
    assert loss < whole
    assert torch.equal(gradient[:, [0, 2]], whole_gradient[:, [0, 2]])  # the other outputs do not notice
    if not options.get("batch_dice"):
        assert torch.equal(gradient[1], whole_gradient[1])
    logits[0, 1] = float("nan")
    again, (gradient_again,) = loss_and_gradient(REGIONS, options, logits, PartialLabel(label, annotated))
    assert torch.equal(loss, again) and torch.equal(gradient, gradient_again)


@every_output
@every_loss
def test_a_batch_without_annotation_has_loss_and_gradient_zero(scheme: LabelScheme, options: dict[str, Any]) -> None:
    logits, label = random_batch(scheme)
    loss, (gradient,) = loss_and_gradient(scheme, options, logits, torch.full_like(label, IGNORE))
    assert loss == 0 and not gradient.any()
    if scheme is REGIONS:
        nothing = PartialLabel(label, torch.zeros(2, 3, dtype=torch.bool))
        loss, (gradient,) = loss_and_gradient(scheme, options, logits, nothing)
        assert loss == 0 and not gradient.any()


@every_output
def test_the_loss_is_the_mean_over_the_samples_however_much_they_annotate(scheme: LabelScheme) -> None:
    logits, label = random_batch(scheme, size=3)
    label[0, :, 1:] = IGNORE
    label[1] = IGNORE
    loss = build_loss(LossConfig(), scheme)
    one_by_one = torch.stack([loss(logits[k : k + 1], label[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(loss(logits, label), one_by_one.mean())


def test_the_sigmoid_losses_are_those_of_monai_and_torch() -> None:
    logits, label = random_batch(REGIONS)
    membership = torch.cat([label >= 1, label >= 2, label >= 3], dim=1).float()
    dice = DiceLoss(sigmoid=True)(logits, membership)
    expected = {
        "dice": dice,
        "cross_entropy": F.binary_cross_entropy_with_logits(logits, membership),
        "dice_ce": dice + F.binary_cross_entropy_with_logits(logits, membership),
    }
    for name, value in expected.items():
        ours, _ = loss_and_gradient(REGIONS, {"name": name}, logits, label)
        torch.testing.assert_close(ours, value)
    classes = LabelScheme(CLASSES, sigmoid=True)  # exclusive classes, each with an output of its own
    binary = torch.cat([label == k for k in (1, 2, 3)], dim=1).float()
    ours, _ = loss_and_gradient(classes, {"name": "cross_entropy"}, logits, label)
    torch.testing.assert_close(ours, F.binary_cross_entropy_with_logits(logits, binary))


OWN = """
def with_mask(logits, target, mask=None):
    return (logits * mask).square().sum() / mask.expand_as(logits).sum()
def without_mask(logits, target):
    return (logits.sigmoid() - target).square().mean()
"""


def outside(name: str, scheme: LabelScheme, **args: Any) -> Any:
    return build_loss(OutsideLoss.model_validate({"name": name, "args": args}), scheme)


def test_a_loss_from_outside_gets_membership_and_mask(user_folder: Any) -> None:
    (user_folder / "own_losses.py").write_text(OWN)
    logits, label = random_batch(REGIONS)
    no_ignore = LabelScheme(CLASSES, None, REGIONS.regions)
    membership = torch.cat([label >= 1, label >= 2, label >= 3], dim=1).float()
    tversky = outside("monai.losses:TverskyLoss", no_ignore, alpha=0.5, beta=0.5)
    torch.testing.assert_close(tversky(logits, label), DiceLoss(sigmoid=True)(logits, membership), atol=1e-4, rtol=1e-4)
    squares = outside("own_losses:without_mask", no_ignore)
    torch.testing.assert_close(squares(logits, label), (logits.sigmoid() - membership).square().mean())
    with pytest.raises(PartError, match="takes no mask"):
        outside("own_losses:without_mask", REGIONS)(logits, label)
    with pytest.raises(PartError, match="args asks for softmax"):
        outside("monai.losses:DiceLoss", REGIONS, softmax=True)
    label[:, :, 2:] = IGNORE
    logits = logits.requires_grad_()
    outside("own_losses:with_mask", REGIONS)(logits, label).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[:, :, :2], 2 * logits[:, :, :2].detach() / logits[:, :, :2].numel())
    assert not logits.grad[:, :, 2:].any()


@every_output
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_certain_voxels_have_finite_gradients(scheme: LabelScheme, gamma: float) -> None:
    """A probability of exactly 1 in float32."""
    logits, label = random_batch(scheme)
    _, (gradient,) = loss_and_gradient(scheme, {"name": "dice_focal", "gamma": gamma}, 100 * logits, label)
    assert gradient.isfinite().all()
