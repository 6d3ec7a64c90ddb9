"""Records, configurations and pictures in the forms that trackers take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by the name `kind/field`; those of its tables by `kind/field/key`.

    Args:
        record: see `fusionseg.observability.sinks.sink.Sink.record`.
    """
    found: dict[str, float] = {}
    for name, value in record.items():
        values = value.items() if isinstance(value, Mapping) else [("", value)]
        for key, point in values:
            if name not in ("kind", "step") and isinstance(point, int | float):
                found["/".join(filter(None, (record["kind"], name, str(key))))] = float(point)
    return found


def best_scores(end: Mapping[str, Any]) -> dict[str, float]:
    """The best scores in an end record, by their names there, such as best_dice.

    Args:
        end: the end record.
    """
    return {
        name: float(value) for name, value in end.items() if name.startswith("best_") and isinstance(value, int | float)
    }


def settings_of(config: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The settings of a configuration by their dotted keys; lists are written as texts, and null is left out.

    Args:
        config: plain values.
    """
    return dict(_flat(config, ""))


def pixels_of(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A picture as bytes, (H, W, 3).

    Args:
        image: RGB in [0, 1], (3, H, W).
    """
    pixels: NDArray[np.uint8] = (np.clip(image.transpose(1, 2, 0), 0, 1) * 255).round().astype(np.uint8)
    return pixels


def _flat(plain: Any, at: str) -> Iterator[tuple[str, str | int | float | bool]]:
    if isinstance(plain, Mapping):
        for key, value in plain.items():
            yield from _flat(value, f"{at}.{key}" if at else str(key))
    elif isinstance(plain, str | int | float):
        yield at, plain
    elif plain is not None:
        yield at, str(plain)
