"""The fingerprint of a data set, and its JSON form.

`fusionseg.data.fingerprint.reading` measures it; `fusionseg.planning` builds on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from fusionseg.data.fingerprint.case import LEVELS, CaseFingerprint, Intensities
from fusionseg.data.fingerprint.preview import Preview
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import write_json

FORMAT = 1
"""Version of the JSON form."""


@dataclass(frozen=True)
class DamagedCase:
    """A training case that cannot be used, and is not measured.

    Args:
        name: of the case.
        reasons: its errors as `fusionseg check` words them, each with the file and the remedy.
    """

    name: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Fingerprint:
    """The measurements of the training cases of a data set. Test cases are not in it.

    Args:
        dataset: name of the data set.
        channels: their names.
        outputs: names of the outputs: the foreground classes, or the regions; empty if no case has a label.
        is_regions: True if the outputs are regions, which may overlap.
        cases: those that could be read, sorted by name.
        damaged: the others.
        source: digest of the files that were read, see `fusionseg.data.fingerprint.kept`.
        previews: pictures by name of the case, for the page; the JSON does not keep them.
    """

    dataset: str
    channels: tuple[str, ...]
    outputs: tuple[str, ...]
    is_regions: bool
    cases: tuple[CaseFingerprint, ...]
    damaged: tuple[DamagedCase, ...] = ()
    source: str = ""
    previews: dict[str, Preview] = field(default_factory=dict, compare=False, repr=False)

    @property
    def labelled(self) -> tuple[CaseFingerprint, ...]:
        """The cases with a label."""
        return tuple(case for case in self.cases if case.labelled)

    @property
    def shapes(self) -> NDArray[np.int64]:
        """Number of voxels of each case along x, y, z, (N, 3)."""
        return np.array([case.shape for case in self.cases], np.int64).reshape(-1, 3)

    @property
    def spacings_mm(self) -> NDArray[np.float64]:
        """Voxel size of each case along x, y, z, (N, 3)."""
        return np.array([case.spacing_mm for case in self.cases], np.float64).reshape(-1, 3)

    def median_shape_at(self, spacing_mm: Sequence[float]) -> tuple[int, int, int]:
        """Median number of voxels of the cases along x, y, z after a resampling.

        Args:
            spacing_mm: voxel size after the resampling.
        """
        shapes = np.rint(self.shapes * self.spacings_mm / np.asarray(spacing_mm))
        x, y, z = (int(size) for size in np.median(shapes, axis=0).round())
        return x, y, z

    def foreground_intensities(self, channel: int) -> Intensities | None:
        """Intensities of the foreground of all cases, where each case has the same weight.

        Args:
            channel: its index.

        Returns:
            None if no case has foreground in this channel.
        """
        return pool_intensities(case.foreground[channel] for case in self.cases)

    def whole_intensities(self, channel: int) -> Intensities | None:
        """Intensities of the volumes of all cases, where each case has the same weight.

        Args:
            channel: its index.

        Returns:
            None if all cases lack the channel.
        """
        return pool_intensities(case.whole[channel] for case in self.cases)

    def to_json(self) -> dict[str, Any]:
        """The fingerprint in JSON's types."""
        content = asdict(replace(self, previews={}))
        del content["previews"]
        return {"format": FORMAT, **content}

    def write(self, path: Path) -> None:
        """Write the fingerprint as JSON.

        Args:
            path: the file.
        """
        write_json(path, self.to_json())


def read_json_fingerprint(path: Path) -> Fingerprint:
    """Read a fingerprint that `Fingerprint.write` has written.

    Args:
        path: the file.

    Raises:
        UserError: the file cannot be read, or is no fingerprint.
    """
    remedy = "make it again: fusionseg check DATASET --fingerprint FOLDER"
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON: {error}; {remedy}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: is no fingerprint of this version (expected format {FORMAT}, got {found}); {remedy}")
    try:
        return TypeAdapter(Fingerprint).validate_python(content)
    except ValidationError as error:
        problems = [f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}; {remedy}" for fault in error.errors()]
        raise UserError(problems) from None


def pool_intensities(parts: Iterable[Intensities | None]) -> Intensities | None:
    """Pool the intensities of several cases, where each case has the same weight.

    Mean and deviation are exact. A percentile is that of the mixture of the cases' distributions, each of which is
    interpolated linearly between its own percentiles.

    Args:
        parts: one for each case; None is left out.

    Returns:
        None if there are none.
    """
    known = [part for part in parts if part is not None]
    if not known:
        return None
    mean = float(np.mean([part.mean for part in known]))
    square = float(np.mean([part.deviation**2 + part.mean**2 for part in known]))
    knots = np.array([part.quantiles for part in known])
    values = np.unique(knots)
    shares = np.zeros(len(values))
    for row in knots:
        shares += np.interp(values, row, LEVELS, left=0.0, right=100.0)
    shares /= len(known)
    quantiles = np.interp(LEVELS, shares, values)
    quantiles[0], quantiles[-1] = values[0], values[-1]
    return Intensities(
        sum(part.voxels for part in known),
        mean,
        float(np.sqrt(max(0.0, square - mean**2))),
        tuple(float(value) for value in quantiles),
    )
