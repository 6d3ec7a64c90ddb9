"""The work on one case of a prediction: read it, predict it, write its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.data.preprocessing.memory import MemoryLimit
from fusionseg.inference.calls.overlap import Stages
from fusionseg.inference.loaded_case import LoadedCase
from fusionseg.inference.mask_formats.choice import choose_format
from fusionseg.inference.mask_formats.mask import Mask
from fusionseg.inference.masks import mask_path, origin_of
from fusionseg.inference.original_grid import Shape
from fusionseg.inference.predictor import Predictor


@dataclass(frozen=True)
class CaseFacts:
    """The facts about a case that are known once it was predicted."""

    shape: Shape
    spacing_mm: tuple[float, float, float]
    is_trained_on: bool


class PredictionStages:
    """The stages of the cases of one call."""

    def __init__(
        self, predictor: Predictor, channels: Sequence[int] | None, output: Path, format_name: str, made_by: str
    ) -> None:
        """Args:
        predictor: the network, or an ensemble.
        channels: the positions of the network's channels among those of the cases; None is the same order.
        output: the folder for the masks.
        format_name: of the masks, see `choose_format`.
        made_by: the result of `predictor_hash`.
        """
        self.facts: dict[str, CaseFacts] = {}
        """Of the cases that were predicted, by name."""
        self._predictor = predictor
        self._channels = channels
        self._output = output
        self._format_name = format_name
        self._made_by = made_by

    def stages(self) -> Stages[Case, LoadedCase, NDArray[Any]]:
        """The three stages, for `overlapped`."""
        return Stages(self._read, self._predict, self._write)

    def _read(self, case: Case, memory: MemoryLimit | None) -> LoadedCase:
        return self._predictor.load(case.images, self._channels, memory)

    def _predict(self, case: Case, loaded: LoadedCase) -> NDArray[Any]:
        outputs = self._predictor.outputs_of(loaded)
        self.facts[case.name] = CaseFacts(
            loaded.shape, voxel_sizes(loaded.volumes[0].original_affine), self._predictor.was_trained_on(loaded)
        )
        return outputs

    def _write(self, case: Case, outputs: NDArray[Any]) -> None:
        """Write the mask of a case.

        Raises:
            VolumeError: the mask cannot be written in this format.
            WriteError: the file cannot be written.
        """
        scheme, image = self._predictor.scheme, case.images[0]
        mask_format = choose_format(self._format_name, image)
        mask = Mask(scheme.to_mask(outputs), scheme.value_names, image, self._predictor.readers)
        target = mask_path(self._output, case, mask_format)
        mask_format.write(mask, target, lambda digest: str(origin_of(case, self._made_by, digest)))
