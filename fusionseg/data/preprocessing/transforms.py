"""Deterministic transforms of the user's choice (`data.transforms`), between resampling and normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform, RandomizableTrait, Transform
from numpy.typing import NDArray
from pydantic import TypeAdapter

from fusionseg.config.data.parts import TransformPart
from fusionseg.config.outside import failure_text
from fusionseg.data.labels.scheme import IGNORE, UNLABELLED, LabelScheme
from fusionseg.data.outside import make_part
from fusionseg.utils.errors import UserError

KEY = "data.transforms"
IMAGE, LABEL = "image", "label"
_PARTS: TypeAdapter[tuple[TransformPart, ...]] = TypeAdapter(tuple[TransformPart, ...])


class TransformError(ValueError):
    """A transform cannot be applied to a case.

    Args:
        message: the fault, with the key of the transform.
        remedy: the advice to the user.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.message, self.remedy = message, remedy


class Transforms:
    """The transforms of a configuration, in their order.

    Args:
        parts: their sections.

    Raises:
        UserError: a transform cannot be made, is random, or works on arrays instead of dictionaries.
    """

    def __init__(self, parts: Sequence[TransformPart]) -> None:
        self._steps: list[tuple[str, Callable[[dict[str, Any]], Any]]] = []
        for index, part in enumerate(parts):
            name = f"{KEY}.{index} ({part.name})"
            self._steps.append((name, _make(part, f"{KEY}.{index}")))

    def __bool__(self) -> bool:
        return bool(self._steps)

    def __call__(
        self,
        image: NDArray[np.float32],
        label: NDArray[np.uint8] | None,
        affine: NDArray[np.float64],
        scheme: LabelScheme | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
        """Apply the transforms to a case.

        Args:
            image: (C, X, Y, Z).
            label: (X, Y, Z); None for a case without one, as in a prediction.
            affine: 4x4, from voxel index to mm.
            scheme: of the data set; None for a case without a label.

        Raises:
            TransformError: a transform raised an exception, changed the geometry, or returned an invalid value.
        """
        data: dict[str, Any] = {IMAGE: MetaTensor(torch.from_numpy(image.copy()), affine=torch.from_numpy(affine))}
        if label is not None:
            values = torch.from_numpy(label[None].astype(np.float32))
            data[LABEL] = MetaTensor(values, affine=torch.from_numpy(affine))
        for name, step in self._steps:
            data = _apply(name, step, data)
            for key in data.keys() & {IMAGE, LABEL}:
                channels = len(image) if key == IMAGE else 1
                _check_geometry(name, key, data[key], (channels, *image.shape[1:]), affine)
        changed = np.asarray(_array(data[IMAGE]), np.float32)
        if not np.isfinite(changed).all():
            raise TransformError(f"{KEY}: the image has NaN or infinite voxels after the transforms", "correct them")
        if label is None:
            return changed, None
        return changed, _label(_array(data[LABEL])[0], scheme or UNLABELLED)


def open_transforms(parts: Sequence[TransformPart]) -> Transforms:
    """Make the transforms of a configuration, once in each process.

    Args:
        parts: `data.transforms`.

    Raises:
        UserError: see `Transforms`.
    """
    return _open(_PARTS.dump_json(tuple(parts)))


@lru_cache(maxsize=8)
def _open(parts: bytes) -> Transforms:
    return Transforms(_PARTS.validate_json(parts))


def _make(part: TransformPart, key: str) -> Callable[[dict[str, Any]], Any]:
    if not isinstance(part.part, type):
        return partial(part.part, **part.args)
    made = make_part(part, key)
    if isinstance(made, RandomizableTrait) and not isinstance(made, Compose):
        raise UserError(
            f"{key}: {part.name} is random, and the preparation is done once; name it in augment.also, or choose a"
            " deterministic transform"
        )
    if isinstance(made, Transform) and not isinstance(made, MapTransform | Compose):
        raise UserError(
            f"{key}: {part.name} works on arrays (expected a transform of dictionaries); name its dictionary version,"
            f" such as {part.name}d"
        )
    if not callable(made):
        raise UserError(f"{key}: {part.name} makes an object that cannot be called; add __call__(self, data)")
    if isinstance(made, MapTransform) and LABEL in made.keys:
        made.allow_missing_keys = True  # a prediction has no label, and the image is transformed all the same
    step: Callable[[dict[str, Any]], Any] = made
    return step


def _apply(name: str, step: Callable[[dict[str, Any]], Any], data: dict[str, Any]) -> dict[str, Any]:
    try:
        result = step(dict(data))
    except Exception as error:  # a user's code may raise anything
        if isinstance(error, KeyError) and LABEL in str(error) and LABEL not in data:
            raise TransformError(
                f"{name}: needs the label, and a prediction has none", "let it work without (if 'label' in data)"
            ) from error
        raise TransformError(
            f"{name}: fails: {failure_text(error)}", "correct the transform or its arguments"
        ) from error
    if not isinstance(result, dict) or data.keys() - result.keys():
        found = f"the keys {', '.join(map(str, result))}" if isinstance(result, dict) else f"a {type(result).__name__}"
        raise TransformError(
            f"{name}: returned an invalid value (expected a dictionary with {', '.join(data)}, got {found})",
            "return the dictionary that it was given, changed",
        )
    return result


def _check_geometry(name: str, key: str, values: Any, shape: tuple[int, ...], affine: NDArray[np.float64]) -> None:
    """Refuse a transform that changes the geometry: masks could not be brought back to the grid of the input.

    Raises:
        TransformError: the shape or the affine has changed.
    """
    found = tuple(getattr(values, "shape", ()))
    if found != shape:
        raise TransformError(
            f"{name}: changes the shape of the {key} (expected {shape}, got {found})",
            "use data.spacing, data.orientation and data.crop_foreground to change the geometry",
        )
    if isinstance(values, MetaTensor) and not np.allclose(np.asarray(values.affine), affine, atol=1e-4):
        raise TransformError(
            f"{name}: changes the affine of the {key}", "use data.spacing and data.orientation to change the geometry"
        )


def _array(values: Any) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _label(values: NDArray[Any], scheme: LabelScheme) -> NDArray[np.uint8]:
    label: NDArray[np.uint8] = np.clip(values, 0, IGNORE).astype(np.uint8)
    wrong = label >= scheme.num_classes
    ignored = ""
    if scheme.ignore is not None:
        wrong &= label != IGNORE
        ignored = f", or {IGNORE} for ignored voxels,"
    if not np.array_equal(label, values) or wrong.any():
        raise TransformError(
            f"{KEY}: the label has other values than 0 to {scheme.num_classes - 1}{ignored} after the transforms",
            "leave its values as they are, or map them to these",
        )
    return label
