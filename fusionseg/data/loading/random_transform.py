"""A random dictionary transform of MONAI as an augmentation: it is seeded anew for each sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusionseg.data.loading.augmentation_protocol import Augmentation, Drawn
from fusionseg.utils.errors import UserError

IMAGE, LABEL = "image", "label"


class RandomTransform:
    """An augmentation by a random transform from dictionary to dictionary.

    The plan draws a seed for each sample, and the device part sets it before the transform is called. So the result
    depends on the sample alone, as for every augmentation. The samples are transformed one after the other.

    Args:
        transform: with `set_random_state`.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def draw(self, rng: np.random.Generator) -> dict[str, int]:
        """Draw the seed of the transform."""
        return {"seed": int(rng.integers(2**32))}

    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Transform each image (C, X, Y, Z) and label (1, X, Y, Z)."""
        images, labels = [], []
        for i, seed in enumerate(drawn.host["seed"]):
            self.transform.set_random_state(seed=int(seed))
            result = self.transform({IMAGE: image[i], LABEL: label[i].float()})
            images.append(_plain(result[IMAGE]))
            labels.append(_plain(result[LABEL]).round().long())
        return torch.stack(images), torch.stack(labels)


def as_augmentation(part: Any, key: str, name: str) -> Augmentation:
    """Convert a user's object to an augmentation.

    Args:
        part: an object with `draw` and `apply`, or a random transform of MONAI.
        key: of its section, for messages.
        name: its dotted path, for messages.

    Raises:
        UserError: it is neither.
    """
    if callable(getattr(part, "draw", None)) and callable(getattr(part, "apply", None)):
        augmentation: Augmentation = part
        return augmentation
    from monai.transforms import MapTransform, Randomizable  # costs a second, and few runs need it

    if isinstance(part, Randomizable) and isinstance(part, MapTransform):
        spatial = type(part).__module__.startswith(("monai.transforms.spatial", "monai.transforms.croppad"))
        if spatial and LABEL not in part.keys:
            raise UserError(
                f"{key}: {name} would move the image and not its label; add args: {{keys: [image, label], mode:"
                " [bilinear, nearest]}}"
            )
        return RandomTransform(part)
    if type(part).__module__.startswith("monai.transforms"):
        raise UserError(
            f"{key}: {name} is not a random transform of dictionaries (expected a Rand...d of MONAI); name a"
            " deterministic one in data.transforms, and for one of arrays its dictionary version"
        )
    lacking = [method for method in ("draw", "apply") if not callable(getattr(part, method, None))]
    raise UserError(
        f"{key}: {name} is not an augmentation: it lacks {' and '.join(lacking)} (docs/extending.md has an example)"
    )


def _plain(values: Any) -> Tensor:
    tensor: Tensor = values.as_tensor() if hasattr(values, "as_tensor") else torch.as_tensor(values)
    return tensor
