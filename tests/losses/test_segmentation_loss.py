"""Segmentation losses against MONAI, torch and the thesis, with each option of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor

from fusionseg.cluster.sweep import load_sweep
from fusionseg.config import load_config
from fusionseg.losses.named.dice import LossConfig
from fusionseg.losses.segmentation import build_loss, label_at

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ["dice_ce", "dice", "dice_focal", "cross_entropy"]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 6, 7, 5, generator=generator) * 3
    return logits.requires_grad_(), torch.randint(0, 4, (3, 1, 6, 7, 5), generator=generator)


def loss(logits: Tensor | list[Tensor], label: Tensor, **raw: Any) -> Tensor:
    return build_loss(LossConfig.model_validate(raw))(logits, label)


PLAIN = {"to_onehot_y": True, "softmax": True}


@pytest.mark.parametrize("options", [{}, {"include_background": True}, {"squared": True}, {"batch_dice": True}])
@pytest.mark.parametrize(("name", "kind"), [("dice_ce", DiceCELoss), ("dice", DiceLoss)])
def test_dice_losses_are_those_of_monai(
    batch: tuple[Tensor, Tensor], name: str, kind: Any, options: dict[str, bool]
) -> None:
    theirs = kind(
        **PLAIN,
        include_background=options.get("include_background", False),
        squared_pred=options.get("squared", False),
        batch=options.get("batch_dice", False),
    )
    torch.testing.assert_close(loss(*batch, name=name, **options), theirs(*batch))
    if options:  # each option changes the loss
        assert loss(*batch, name=name, **options) != loss(*batch, name=name)


def test_dice_ce_is_the_sum_of_its_parts(batch: tuple[Tensor, Tensor]) -> None:
    parts = loss(*batch, name="dice") + loss(*batch, name="cross_entropy")
    torch.testing.assert_close(loss(*batch, name="dice_ce"), parts)


def thesis_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Loss of the thesis (Dhar, 2023, section 5.2, figure 6) for one volume (1, J, X, Y, Z), written out.

    1 - 2/J sum_j (sum_i G_ij Y_ij) / (sum_i G_ij^2 + sum_i Y_ij^2) - 1/I sum_i sum_j G_ij log Y_ij
    """
    probability = logits[0].softmax(dim=0).flatten(1)  # Y, (J, I)
    truth = F.one_hot(label[0, 0].flatten(), len(probability)).T.float()  # G
    overlap = (truth * probability).sum(dim=1) / (truth.square().sum(dim=1) + probability.square().sum(dim=1))
    return 1 - 2 * overlap.mean() - (truth * probability.log()).sum(dim=0).mean()


def test_shipped_thesis_configurations_use_the_loss_of_the_thesis(batch: tuple[Tensor, Tensor]) -> None:
    logits, label = batch[0][:1], batch[1][:1]
    runs = load_sweep(CONFIGS / "sweeps/table2.yaml").runs
    assert len(runs) >= 24
    for config in [load_config(CONFIGS / "parse_fusion_od.yaml"), *(run.config for run in runs)]:
        ours = build_loss(config.loss)(logits, label)
        torch.testing.assert_close(
            ours, thesis_loss(logits, label), rtol=1e-4, atol=1e-5
        )  # MONAI adds 1e-5 for smoothing
    default = loss(logits, label, name="dice_ce")  # not squared, without background
    assert abs(default - thesis_loss(logits, label)) > 0.01


def test_focal_loss_with_gamma(batch: tuple[Tensor, Tensor]) -> None:
    logits, label = batch
    probability = logits.softmax(dim=1).gather(1, label)
    focal = (-((1 - probability) ** 3.5) * probability.log()).mean()
    dice = DiceLoss(**PLAIN, include_background=False)(logits, label)
    torch.testing.assert_close(loss(*batch, name="dice_focal", gamma=3.5), dice + focal)


def test_dice_focal_with_gamma_zero_is_dice_ce(batch: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(loss(*batch, name="dice_focal", gamma=0.0), loss(*batch, name="dice_ce"))


def test_cross_entropy_is_that_of_torch(batch: tuple[Tensor, Tensor]) -> None:
    logits, label = batch
    torch.testing.assert_close(loss(logits, label, name="cross_entropy"), F.cross_entropy(logits, label[:, 0]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("truth", ["random", "only background", "only foreground"])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_loss_and_gradient_are_finite(batch: tuple[Tensor, Tensor], name: str, truth: str, scale: float) -> None:
    logits, label = batch
    if truth != "random":
        label = torch.full_like(label, int(truth == "only foreground"))
    value = loss(logits * scale, label, name=name)
    value.backward()
    assert value.shape == () and value.isfinite()
    assert logits.grad is not None and logits.grad.isfinite().all()
    if scale == 1:
        assert logits.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_right_logits_of_two_classes_have_a_loss_near_zero(name: str) -> None:
    label = torch.randint(0, 2, (2, 1, 6, 6, 6), generator=torch.Generator().manual_seed(1))
    right = 20.0 * torch.cat([1 - 2 * label, 2 * label - 1], dim=1)
    good, bad = (float(loss(logits, label, name=name)) for logits in (right, -right))
    assert good == pytest.approx(0, abs=1e-3) and bad > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_loss_of_a_batch_is_the_mean_of_its_samples(batch: tuple[Tensor, Tensor], name: str) -> None:
    """Gradient accumulation depends on this; `batch_dice: true` does not have it, as its documentation says."""
    logits, label = batch
    parts = torch.stack([loss(logits[i : i + 1], label[i : i + 1], name=name) for i in range(3)])
    torch.testing.assert_close(parts.mean(), loss(logits, label, name=name))


# -- deep supervision ----------------------------------------------------------------------------------------


@pytest.fixture
def levels() -> tuple[list[Tensor], Tensor]:
    """Logits at full and at two lower resolutions; the last is not halved along z."""
    generator = torch.Generator().manual_seed(2)
    sizes = ((8, 8, 4), (4, 4, 2), (2, 2, 2))
    logits = [torch.randn(2, 3, *size, generator=generator).requires_grad_() for size in sizes]
    return logits, torch.randint(0, 3, (2, 1, 8, 8, 4), generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_each_lower_resolution_has_half_the_weight(levels: tuple[list[Tensor], Tensor], name: str) -> None:
    logits, label = levels
    parts = [
        loss(logits[0], label, name=name),
        loss(logits[1], label[:, :, 1::2, 1::2, 1::2], name=name),
        loss(logits[2], label[:, :, 2::4, 2::4, 1::2], name=name),
    ]
    value = loss(logits, label, name=name)
    torch.testing.assert_close(value, (4 * parts[0] + 2 * parts[1] + parts[2]) / 7)
    value.backward()
    assert all(part.grad is not None and part.grad.any() for part in logits)
    torch.testing.assert_close(loss(logits[:1], label, name=name), parts[0])


def test_resampled_label_has_no_new_classes() -> None:
    label = torch.zeros(1, 1, 12, 12, 12, dtype=torch.int64)
    label[:, :, 6:] = 2**24 - 1  # float32 represents all integers up to 2**24
    for size in ((4, 6, 12), (12, 12, 12), (3, 1, 1)):
        lower = label_at(label, size)
        assert lower.dtype == torch.int64 and lower.shape == (1, 1, *size)
        assert lower.unique().tolist() == [0, 2**24 - 1]
        assert (lower > 0).sum() == lower[:, :, size[0] // 2 :].numel() == (size[0] + 1) // 2 * size[1] * size[2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_loss_of_16_bit_logits_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    """A sum over this volume exceeds the range of float16; bfloat16 represents integers up to 256."""
    logits = torch.full((1, 2, 48, 48, 48), 5.0, dtype=dtype, requires_grad=True)
    label = torch.ones(1, 1, 48, 48, 48, dtype=torch.int64)
    value = loss(logits, label, name=name)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.detach().float(), label, name=name))
    torch.testing.assert_close(loss([logits, logits[..., ::2]], label, name=name), value, atol=1e-3, rtol=1e-3)
    value.backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
