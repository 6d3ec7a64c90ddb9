"""Whole volumes of a pre-training's validation: what is hidden, how tiles are put together, and what is scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fusionseg.config import validate
from fusionseg.models.masked.masking import blocks_to_voxels
from fusionseg.training.precision import choose_precision
from fusionseg.training.tasks.reconstruction import Reconstructor, cover

PATCH = (64, 32, 32)
CPU = torch.device("cpu")


def reconstructor(**pretrain: Any) -> Reconstructor:
    config = validate(
        {
            "data": {"patch": list(PATCH)},
            "model": {"name": "swin_unetr", "feature_size": 12},
            "pretrain": {"block": 8, **pretrain},
            "validate": {"window_batch": 3},
        }
    )
    return Reconstructor(config, choose_precision("fp32", CPU), CPU)


class Shown(nn.Module):
    """Gives back what it is shown, and its own answer where it is shown nothing."""

    def __init__(self, answer: float) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, image: Tensor, hidden: Tensor) -> Tensor:
        return torch.where(blocks_to_voxels(hidden, image.shape[2:]), self.answer, image)


def waves(shape: tuple[int, int, int]) -> Tensor:
    """(1, X, Y, Z) a smooth volume between -1 and 3."""
    x, y, z = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    volume = 1 + np.sin(x / 3) + np.cos(y / 4) * np.sin(z / 5)
    return torch.from_numpy(volume[None].astype(np.float32))


@pytest.mark.parametrize("shape", [(20, 18, 16), (64, 32, 32), (70, 40, 31), (200, 65, 96)])
def test_every_voxel_belongs_to_one_tile_that_shows_it(shape: tuple[int, int, int]) -> None:
    count = np.zeros(shape, int)
    for tile in cover(shape, PATCH):
        count[tile.core] += 1
        for inside, edge in zip(tile.inside(tile.core), PATCH, strict=True):
            assert 0 <= inside.start < inside.stop <= edge
    assert (count == 1).all()


def test_a_volume_smaller_than_the_patch_is_scored_over_its_own_voxels() -> None:
    """Most of the patch is padding, which is right whatever the network does: counting it would give 0.94."""
    score = reconstructor()
    image = waves((20, 18, 16))
    made = score(Shown(0.0), image, [-1.0], "case")
    assert made.image.shape == made.output.shape == (1, 20, 18, 16) and made.hidden.shape == (1, 20, 18, 16)
    figures = score.score(made)
    expected = {"ssim": 0.391979, "psnr": 17.281882, "ssim_hidden": 0.155773, "psnr_hidden": 13.760057}
    assert figures == pytest.approx(expected, abs=1e-5)  # SSIM by SciPy, see test_reconstruction
    error = np.where(made.hidden, image, 0) ** 2
    assert figures["psnr"] == pytest.approx(10 * np.log10(36 / error.mean()), abs=1e-5)
    assert figures["psnr_hidden"] == pytest.approx(10 * np.log10(36 / error[made.hidden.numpy()].mean()), abs=1e-5)


def test_what_is_hidden_is_the_same_in_every_run_and_grows_with_the_share() -> None:
    image = waves((70, 40, 31))
    half, again, more = (
        reconstructor(ratio=ratio)(Shown(0.0), image, [0.0], "case").hidden for ratio in (0.5, 0.5, 0.75)
    )
    assert (half == again).all() and (more | ~half).all() and more.sum() > half.sum()
    assert (reconstructor()(Shown(0.0), image, [0.0], "other").hidden != half).any()


def test_a_voxel_that_is_scored_was_not_shown_and_one_that_was_shown_is_right() -> None:
    """Four patches overlap; the network answers 100 where it sees nothing."""
    image = waves((70, 40, 31))
    made = reconstructor()(Shown(100.0), image, [0.0], "case")
    assert (made.output[made.hidden] == 100).all()
    assert (made.output[~made.hidden] == image[~made.hidden]).all()
    assert (made.filled == made.output).all()
    assert (made.masked[made.hidden] == image.min()).all()


def test_the_trivial_fill_ins_do_not_use_padding() -> None:
    """A volume of one value is filled in perfectly, whatever stands around it."""
    score = reconstructor()
    image = torch.full((1, 20, 18, 16), 2.0)
    made = score(Shown(0.0), image, [-5.0], "case")
    fills = score.score_fill_ins(made, [-5.0], "case")
    assert set(fills) == {
        f"{key}_{fill}"
        for key in ("ssim", "psnr", "ssim_hidden", "psnr_hidden")
        for fill in ("mean_fill", "linear_fill")
    }
    assert fills["ssim_hidden_mean_fill"] == fills["ssim_hidden_linear_fill"] == pytest.approx(1)
    assert fills["psnr_mean_fill"] == pytest.approx(100) and score.score(made)["ssim"] < 0.6


def test_a_volume_of_which_nothing_is_visible_is_filled_with_what_surrounds_it() -> None:
    """Eight of the sixteen blocks hold the volume, and fourteen are hidden."""
    score = reconstructor(block=16, ratio=0.9)
    image = waves((8, 8, 8))
    made = {name: score(Shown(0.0), image, [-1.0], name) for name in map(str, range(20))}
    name = next(name for name, volume in made.items() if volume.hidden.all())
    figures = score.score_fill_ins(made[name], [-1.0], name)
    error = float((image + 1).square().mean())
    for fill in ("mean_fill", "linear_fill"):
        assert figures[f"psnr_{fill}"] == pytest.approx(10 * np.log10(36 / error), abs=1e-5)
