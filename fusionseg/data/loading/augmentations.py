"""Augmentations that work in two parts: the plan draws random numbers, the device applies them to a batch.

The built-in augmentations of this form change intensities (folder `intensity`). `augment.also` adds the user's
own. Flips, rotations, zooms and deformations are part of the cutting of a patch instead (`patch_augmenter`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.config.data.augmentation import AugmentConfig
from fusionseg.config.outside import failure_text
from fusionseg.data.loading.augmentation_protocol import Augmentation, Drawn, Draws
from fusionseg.data.loading.counter_random import generator
from fusionseg.data.loading.intensity.section import BatchedIntensitySection, ImageLayout, IntensitySection
from fusionseg.data.loading.purposes import named_purpose, outside_purpose
from fusionseg.data.loading.random_transform import as_augmentation
from fusionseg.data.outside import make_part
from fusionseg.utils.errors import UserError

KEY = "augment.also"


@dataclass(frozen=True)
class PlannedAugmentation:
    """An augmentation with its place in the configuration and its random numbers.

    Args:
        key: of its section, such as "augment.noise" or "augment.also.0".
        prob: chance that a sample is changed.
        purpose: see `purposes`.
        part: the augmentation.
    """

    key: str
    prob: float
    purpose: int
    part: Augmentation

    def draw(self, seed: int, step: int, samples: Sequence[int]) -> Draws:
        """Draw the numbers of some samples.

        Args:
            seed: of the run.
            step: of the optimizer.
            samples: indices within the global batch.
        """
        hit = np.zeros(len(samples), np.bool_)
        drawn: list[Mapping[str, Any]] = []
        for i, sample in enumerate(samples):
            rng = generator(seed, step, sample, self.purpose)
            if rng.random() < self.prob:
                hit[i] = True
                drawn.append(self.part.draw(rng))
        names = drawn[0] if drawn else ()
        return Draws(hit, {name: np.stack([np.asarray(one[name]) for one in drawn]) for name in names})

    def apply(
        self, image: Tensor, label: Tensor, draws: Draws, send: Callable[[NDArray[Any]], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Change the samples of a batch that were drawn.

        Args:
            image: (B, C, X, Y, Z); changed in place.
            label: (B, 1, X, Y, Z); changed in place.
            draws: of the batch.
            send: copies an array to the device of the batch.

        Raises:
            UserError: the augmentation returned another shape.
        """
        for batch, rows in draws.runs():
            given = image[batch], label[batch]
            drawn = Drawn({name: values[rows] for name, values in draws.values.items()}, send)
            for before, after in zip(given, _checked(self.key, given, self.part.apply(*given, drawn)), strict=True):
                if after is not before:
                    before.copy_(after)
        return image, label

    @property
    def section(self) -> BatchedIntensitySection | None:
        """The section of an augmentation that can change all samples by the same operators."""
        section = self.part.section if isinstance(self.part, _OfIntensities) else None
        return section if isinstance(section, BatchedIntensitySection) else None


@dataclass(frozen=True)
class _OfIntensities:
    """A built-in augmentation of intensities, for images of one layout."""

    section: IntensitySection
    layout: ImageLayout

    def draw(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Draw the numbers of a sample; see `Augmentation.draw`."""
        return self.section.draw(rng, self.layout)

    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Change a batch; see `Augmentation.apply`."""
        return self.section.apply(image, drawn), label


def open_augmentations(config: AugmentConfig, layout: ImageLayout) -> list[PlannedAugmentation]:
    """Make the augmentations of a configuration, in the order in which they are applied.

    Args:
        config: the section `augment`.
        layout: of the images.

    Raises:
        UserError: one of `augment.also` cannot be made, or is no augmentation.
    """
    opened = [
        PlannedAugmentation(
            f"augment.{name}",
            section.prob,
            named_purpose(name) if section.purpose is None else section.purpose,
            _OfIntensities(section, layout),
        )
        for name, section in config.intensities.items()
    ]
    count: Counter[str] = Counter()
    for index, part in enumerate(config.also):
        key = f"{KEY}.{index}"
        purpose = outside_purpose(part.name, count[part.name])
        count[part.name] += 1
        made = as_augmentation(make_part(part, key), key, part.name)
        opened.append(PlannedAugmentation(key, part.prob, purpose, made))
    return opened


def check_augmentations(
    config: AugmentConfig, channels: int, patch: tuple[int, int, int], device: torch.device
) -> None:
    """Apply the augmentations of `augment.also` to a random patch, before the training.

    Args:
        config: the section `augment`.
        channels: of the image.
        patch: size in voxels.
        device: the training device.

    Raises:
        UserError: one of them raises an exception, returns an invalid value, or uses random numbers that do not come
            from its generator.
    """
    image = torch.randn((1, channels, *patch), generator=torch.Generator().manual_seed(0)).to(device)
    label = torch.zeros((1, 1, *patch), dtype=torch.int64, device=device)
    for one in open_augmentations(config, ImageLayout(channels)):
        if not one.key.startswith(KEY):
            continue
        results = []
        for _ in range(2):
            try:
                drawn = one.part.draw(generator(0, 0, 0, one.purpose))
                if not isinstance(drawn, Mapping):
                    raise TypeError(f"draw returned an invalid value (expected a dictionary, got {drawn!r})")
                host = {name: np.asarray(values)[None] for name, values in drawn.items()}
                given = image.clone(), label.clone()
                with torch.no_grad():
                    changed = one.part.apply(*given, Drawn(host, lambda values: torch.from_numpy(values).to(device)))
                results.append(_checked(one.key, given, changed))
            except UserError:
                raise
            except Exception as error:  # a user's code may raise anything
                raise UserError(f"{one.key}: fails: {failure_text(error)}; correct the augmentation") from error
        same = all(torch.allclose(a.float(), b.float(), equal_nan=True) for a, b in zip(*results, strict=True))
        if not same:
            raise UserError(
                f"{one.key}: gives two different results for the same sample, so a resumed run would differ; draw every"
                " random number in draw(rng), from rng alone"
            )


def _checked(key: str, given: tuple[Tensor, Tensor], returned: Any) -> tuple[Tensor, Tensor]:
    """The image and the label that an augmentation returned.

    Raises:
        UserError: they are not two tensors in the shapes of those it was given.
    """
    if not (isinstance(returned, tuple | list) and len(returned) == 2):
        raise UserError(f"{key}: apply returned a {type(returned).__name__} (expected (image, label)); return both")
    for name, before, after in zip(("image", "label"), given, returned, strict=True):
        if not isinstance(after, Tensor) or after.shape != before.shape or after.device != before.device:
            found = (
                f"{tuple(after.shape)} on {after.device}" if isinstance(after, Tensor) else f"a {type(after).__name__}"
            )
            raise UserError(
                f"{key}: apply returned a wrong {name} (expected {tuple(before.shape)} on {before.device}, got"
                f" {found}); keep shape and device"
            )
    return returned[0], returned[1]
