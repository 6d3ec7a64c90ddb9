"""The preset `nnunet` in other libraries, for comparison: batchgeneratorsv2 (the library of nnU-Net v2) and MONAI.

profiling/benchmark_augmentation.py imports this module. Each recipe is a list of named transforms of a dictionary with
`image` (C, X, Y, Z) float32 and a label mask (1, X, Y, Z).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fusionseg.config.data.augmentation_presets import PRESETS

Transform = Callable[[dict[str, Any]], dict[str, Any]]
NNUNET: Mapping[str, Any] = PRESETS["nnunet"].values


def batchgenerators_recipe(patch: tuple[int, int, int], *, mode_seg: str = "bilinear") -> dict[str, Transform]:
    """The training transforms of nnU-Net v2, by the key of `augment` that does the same.

    Args:
        patch: size in voxels.
        mode_seg: interpolation of the label: "bilinear" is nnU-Net's (an interpolation for each label), "nearest" is
            that of fusionseg.
    """
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    limit = math.radians(NNUNET["rotate"]["degrees"])
    factor = NNUNET["scale_intensity"]["factor"]
    spatial = SpatialTransform(
        patch, patch_center_dist_from_border=0, random_crop=False, p_rotation=NNUNET["rotate"]["prob"],
        rotation=(-limit, limit), p_scaling=NNUNET["scale"]["prob"], scaling=tuple(NNUNET["scale"]["factor"]),
        p_synchronize_scaling_across_axes=1, mode_seg=mode_seg,
    )  # fmt: skip
    low, blur = NNUNET["low_resolution"], NNUNET["blur"]
    changes = {
        "noise": GaussianNoiseTransform((0, NNUNET["noise"]["std"]), 1, True),
        "blur": GaussianBlurTransform(tuple(blur["sigma"]), False, False, blur["channel_prob"], benchmark=True),
        "scale_intensity": MultiplicativeBrightnessTransform(BGContrast((1 - factor, 1 + factor)), False, 1),
        "contrast": ContrastTransform(BGContrast(tuple(NNUNET["contrast"]["factor"])), True, False, 1),
        "low_resolution": SimulateLowResolutionTransform(
            tuple(low["zoom"]), False, True, None, None, low["channel_prob"]
        ),
        "gamma_inverted": GammaTransform(BGContrast(tuple(NNUNET["gamma_inverted"]["exponent"])), 1, False, 1, 1),
        "gamma": GammaTransform(BGContrast(tuple(NNUNET["gamma"]["exponent"])), 0, False, 1, 1),
    }  # fmt: skip
    randomly = {key: RandomTransform(one, NNUNET[key]["prob"]) for key, one in changes.items()}
    every = {"spatial": spatial, **randomly, "flip": MirrorTransform((0, 1, 2))}

    def on_dictionary(transform: Any) -> Transform:
        return lambda sample: transform(**sample)  # type: ignore[no-any-return]

    return {key: on_dictionary(transform) for key, transform in every.items()}


def monai_recipe(patch: tuple[int, int, int]) -> dict[str, Transform]:
    """The dictionary transforms of MONAI that come closest, by the key of `augment` that does the same.

    Args:
        patch: size in voxels.
    """
    from monai import transforms as t

    keys, image = ("image", "segmentation"), ("image",)
    limit, (smallest, largest) = math.radians(NNUNET["rotate"]["degrees"]), NNUNET["scale"]["factor"]
    warped = 1 - (1 - NNUNET["rotate"]["prob"]) * (1 - NNUNET["scale"]["prob"])
    sigma, factor = tuple(NNUNET["blur"]["sigma"]), NNUNET["scale_intensity"]["factor"]
    contrast = tuple(edge - 1 for edge in NNUNET["contrast"]["factor"])

    def gamma(key: str, inverted: bool) -> Any:
        settings = NNUNET[key]
        return t.RandAdjustContrastd(
            image, settings["prob"], tuple(settings["exponent"]), invert_image=inverted, retain_stats=True
        )

    every: dict[str, Any] = {
        "spatial": t.RandAffined(
            keys, patch, warped, rotate_range=(limit,) * 3, scale_range=((smallest - 1, largest - 1),) * 3,
            mode=("bilinear", "nearest"), padding_mode="zeros",
        ),
        "noise": t.RandGaussianNoised(image, NNUNET["noise"]["prob"], std=NNUNET["noise"]["std"]),
        "blur": t.RandGaussianSmoothd(image, sigma, sigma, sigma, prob=NNUNET["blur"]["prob"] * 0.5),
        "scale_intensity": t.RandScaleIntensityd(image, factor, NNUNET["scale_intensity"]["prob"]),
        "contrast": t.RandScaleIntensityFixedMeand(
            image, NNUNET["contrast"]["prob"], contrast, preserve_range=True
        ),
        "low_resolution": t.RandSimulateLowResolutiond(
            image, NNUNET["low_resolution"]["prob"] * 0.5, zoom_range=tuple(NNUNET["low_resolution"]["zoom"])
        ),
        "gamma_inverted": gamma("gamma_inverted", True),
        "gamma": gamma("gamma", False),
        **{f"flip {axis}": t.RandFlipd(keys, NNUNET["flip"], axis) for axis in range(3)},
    }  # fmt: skip
    return every
