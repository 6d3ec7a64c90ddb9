"""Parts shared by the recipes of benchmark_recipes.py: cases, network, transforms, the data of MONAI's tutorial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fusionseg.config import RunConfig
from fusionseg.distributed.launch import read_launch
from fusionseg.distributed.world import choose_device
from fusionseg.models.networks.monai_unet import MonaiUNetConfig
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.runs.cases.datasets import open_run_datasets
from fusionseg.training.precision import Precision, choose_precision
from fusionseg.utils.errors import UserError
from fusionseg.utils.machine import available_cpus

KEYS = ("image", "label")


@dataclass(frozen=True)
class Setting:
    """Configuration, device and cases of a recipe."""

    config: RunConfig
    device: torch.device
    precision: Precision
    train_files: list[dict[str, str]]
    validation_files: list[dict[str, str]]
    num_classes: int

    @property
    def volumes(self) -> int:
        """Volumes of a step."""
        return max(1, self.config.train.global_batch // self.config.data.samples_per_volume)

    @property
    def samples(self) -> int:
        """Samples of a step."""
        return self.volumes * self.config.data.samples_per_volume


def open_setting(config: RunConfig, cases: int | None = None) -> Setting:
    """Open the cases of a configuration's fold as files, and choose device and precision.

    Args:
        config: configuration of the run.
        cases: most training cases; validation takes at most a quarter of that number. None takes all.
    """
    (dataset,) = open_run_datasets(config)
    device = choose_device(config.device, torch.cuda.device_count(), read_launch({}))
    torch.set_num_threads(config.train.threads or available_cpus())
    listed = [
        [{"image": str(case.images[0]), "label": str(case.label)} for case in part[:count]]
        for part, count in ((dataset.training, cases), (dataset.validation, cases and max(1, cases // 4)))
    ]
    precision = choose_precision(config.train.precision, device)
    return Setting(config, device, precision, listed[0], listed[1], dataset.dataset.num_classes)


def plain_network(setting: Setting) -> nn.Module:
    """Build MONAI's network of the configured kind and size.

    Raises:
        UserError: the recipes do not have this kind of network.
    """
    from monai.networks.nets import SwinUNETR, UNet

    torch.manual_seed(setting.config.seed)
    model = setting.config.model
    if isinstance(model, MonaiUNetConfig):
        strides = model.strides or (2,) * (len(model.channels) - 1)
        return UNet(
            3, 1, setting.num_classes, model.channels, strides, num_res_units=model.num_res_units, norm=model.norm
        ).to(setting.device)
    if isinstance(model, SwinConfig) and model.name == "swin_unetr":
        return SwinUNETR(1, setting.num_classes, feature_size=model.feature_size, window_size=model.window_size).to(
            setting.device
        )
    raise UserError(
        f"model.name: the recipes do not have this network (expected monai_unet or swin_unetr, got {model.name!r})"
    )


def fixed_transforms(setting: Setting) -> list[Any]:
    """Deterministic transforms from files to normalised volumes, as configured."""
    from monai import transforms

    data = setting.config.data
    steps: list[Any] = [transforms.LoadImaged(keys=KEYS), transforms.EnsureChannelFirstd(keys=KEYS)]
    if data.orientation:
        steps.append(transforms.Orientationd(keys=KEYS, axcodes=data.orientation, labels=None))
    if data.spacing:
        steps.append(transforms.Spacingd(keys=KEYS, pixdim=data.spacing, mode=("bilinear", "nearest")))
    if data.intensity.clip is not None and data.intensity.mode == "window":
        low, high = data.intensity.clip
        steps.append(transforms.ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True))
    else:
        steps.append(transforms.NormalizeIntensityd(keys="image"))
    return [*steps, transforms.SpatialPadd(keys=KEYS, spatial_size=data.patch)]


def random_transforms(setting: Setting, *, indexed: bool) -> list[Any]:
    """Random transforms of MONAI's tutorial: patches, half of them centred on foreground, flips, an intensity shift.

    Args:
        setting: configuration of the recipe.
        indexed: True if earlier transforms have listed the foreground voxels.
    """
    from monai import transforms

    listed = {"fg_indices_key": "label_fg", "bg_indices_key": "label_bg"} if indexed else {}
    return [
        transforms.RandCropByPosNegLabeld(
            keys=KEYS, label_key="label", spatial_size=setting.config.data.patch, pos=1, neg=1,
            num_samples=setting.config.data.samples_per_volume, **listed,
        ),
        *(transforms.RandFlipd(keys=KEYS, prob=0.5, spatial_axis=axis) for axis in range(3)),
        transforms.RandShiftIntensityd(keys="image", offsets=0.1, prob=0.5),
    ]  # fmt: skip


def cached_on_device(setting: Setting) -> Any:
    """Data loader of MONAI's tutorial: volumes cached on the device, random transforms in a thread."""
    from monai.data import CacheDataset, ThreadDataLoader
    from monai.transforms import Compose, EnsureTyped, FgBgToIndicesd

    chain = Compose(
        [
            *fixed_transforms(setting),
            FgBgToIndicesd(keys="label", fg_postfix="_fg", bg_postfix="_bg"),
            EnsureTyped(keys=KEYS, device=setting.device, track_meta=False),
            *random_transforms(setting, indexed=True),
        ]
    )
    cached = CacheDataset(setting.train_files, chain, copy_cache=False, progress=False, num_workers=2)
    return ThreadDataLoader(cached, batch_size=setting.volumes, shuffle=True, num_workers=0)


@contextmanager
def tracking(tracked: bool) -> Iterator[None]:
    """Set MONAI's global switch for metadata within the body."""
    from monai.data import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(tracked)
    try:
        yield
    finally:
        set_track_meta(before)
