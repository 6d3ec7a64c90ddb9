"""Colour jitter on the training device: brightness, contrast, saturation and hue of RGB images, in a random order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CHANGES = ("brightness", "contrast", "saturation", "hue")
_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


class ColourJitter:
    """Random changes of the colours, as cuCIM's `color_jitter` and torchvision's `ColorJitter` make them.

    Brightness multiplies all values by a factor. Contrast moves the values from or to the mean brightness of the image,
    saturation from or to the brightness of each pixel. Hue turns the circle of colours. Each change draws its number
    uniformly, and the four follow each other in a random order. The images are RGB with values in [0, 1].

    Args:
        brightness: largest change of the factor of the brightness: it is drawn from [1 - brightness, 1 + brightness].
        contrast: the same for the contrast.
        saturation: the same for the saturation.
        hue: largest turn, as a part of the whole circle, at most 0.5.
    """

    def __init__(
        self, brightness: float = 64 / 255, contrast: float = 0.75, saturation: float = 0.25, hue: float = 0.04
    ) -> None:
        given = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, value in given.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a value from 0 to 1, got {value}")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue: expected a value from 0 to 0.5, got {hue}")
        self.factors, self.hue = given, hue

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the numbers of one sample: a factor or turn for each change, and the order of the changes."""
        drawn: dict[str, Any] = {name: rng.uniform(1 - size, 1 + size) for name, size in self.factors.items()}
        return {**drawn, "hue": rng.uniform(-self.hue, self.hue), "order": rng.permutation(len(_CHANGES))}

    def apply(self, image: Tensor, label: Tensor, drawn: Any) -> tuple[Tensor, Tensor]:
        """Change the images (B, 3, X, Y, Z) of a batch.

        Raises:
            ValueError: the images have no three channels.
        """
        if image.shape[1] != 3:
            raise ValueError(f"expected RGB images, got {image.shape[1]} channels; remove ColourJitter")
        order = np.asarray(drawn.host["order"])  # read on the host, so that nothing waits for the device
        image = image.clone()
        for place in range(len(_CHANGES)):
            for index, name in enumerate(_CHANGES):
                rows = np.flatnonzero(order[:, place] == index).tolist()
                if rows:
                    amount = drawn[name][rows].view(-1, 1, 1, 1, 1)
                    image[rows] = _FUNCTIONS[name](image[rows], amount).clamp_(0, 1)
        return image, label


def _brightness(image: Tensor, factor: Tensor) -> Tensor:
    return image * factor


def _contrast(image: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_luma(image).mean(dim=(1, 2, 3, 4), keepdim=True), image, factor)


def _saturation(image: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_luma(image).expand_as(image), image, factor)


def _hue(image: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue in the HSV model (Smith, 1978)."""
    red, green, blue = image.split(1, dim=1)
    value, lowest = image.amax(dim=1, keepdim=True), image.amin(dim=1, keepdim=True)
    chroma = value - lowest
    divisor = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sector = sector + 6 * turn
    # The channel c of a colour of this sector: value - chroma * clamp(min(k, 4 - k), 0, 1), k = (n_c + sector) mod 6.
    parts = []
    for offset in (5.0, 3.0, 1.0):
        k = (sector + offset).remainder(6)
        parts.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.cat(parts, dim=1)


def _luma(image: Tensor) -> Tensor:
    """The brightness of each pixel, (B, 1, X, Y, Z)."""
    red, green, blue = image.split(1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
}
