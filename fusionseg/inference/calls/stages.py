"""The work on one case of a prediction: read it, predict it, write its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.case import Case
from fusionseg.data.preprocessing.memory import MemoryLimit
from fusionseg.inference.calls.overlap import Stages
from fusionseg.inference.calls.probability_files import ProbabilityFiles, check_memory, is_large
from fusionseg.inference.loaded_case import LoadedCase
from fusionseg.inference.mask_formats.choice import choose_format
from fusionseg.inference.mask_formats.mask import Mask, voxel_digest
from fusionseg.inference.mask_formats.probabilities import Probabilities
from fusionseg.inference.masks import mask_path, origin_of
from fusionseg.inference.postprocessing.steps import PostProcessing
from fusionseg.inference.predictor import Predictor
from fusionseg.inference.streaming.window_layout import Shape


@dataclass(frozen=True)
class CaseFacts:
    """The facts about a case that are known once it was predicted."""

    shape: Shape
    spacing_mm: tuple[float, float, float]
    is_trained_on: bool


@dataclass(frozen=True)
class PredictedOutputs:
    """The prediction of a case, before it is written."""

    outputs: NDArray[Any]
    """See `Predictor.outputs_of`."""
    spacing_mm: tuple[float, float, float]
    """Of the file."""
    probabilities: NDArray[np.float32] | None

    def is_large(self) -> bool:
        """Tell whether this must be written before the next case is predicted."""
        return self.probabilities is not None and is_large(self.probabilities.nbytes)


class PredictionStages:
    """The stages of the cases of one call."""

    def __init__(
        self,
        predictor: Predictor,
        channels: Sequence[int] | None,
        output: Path,
        format_name: str,
        made_by: str,
        probabilities: ProbabilityFiles | None = None,
        postprocessing: PostProcessing | None = None,
    ) -> None:
        """Args:
        predictor: the network, or an ensemble.
        channels: the positions of the network's channels among those of the cases; None is the same order.
        output: the folder for the masks.
        format_name: of the masks, see `choose_format`.
        made_by: the result of `predictor_hash`.
        probabilities: the files of the probabilities; None for masks alone.
        postprocessing: of the masks.
        """
        self.facts: dict[str, CaseFacts] = {}
        """Of the cases that were predicted, by name."""
        self._predictor = predictor
        self._channels = channels
        self._output = output
        self._format_name = format_name
        self._made_by = made_by
        self._probabilities = probabilities
        self._postprocessing = postprocessing or PostProcessing()

    def stages(self) -> Stages[Case, LoadedCase, PredictedOutputs]:
        """The three stages, for `overlapped`."""
        return Stages(
            self._read, self._predict, self._write, PredictedOutputs.is_large, self._predictor.processes_on_host
        )

    def _read(self, case: Case, memory: MemoryLimit | None) -> LoadedCase:
        return self._predictor.load(case.images, self._channels, memory)

    def _predict(self, case: Case, loaded: LoadedCase) -> PredictedOutputs:
        probabilities = None
        if self._probabilities is not None:
            check_memory(case, loaded, self._predictor.scheme.num_outputs)
            probabilities = self._predictor.empty_probabilities(loaded)
        outputs = self._predictor.outputs_of(loaded, probabilities)
        self.facts[case.name] = CaseFacts(loaded.shape, loaded.spacing_mm, self._predictor.was_trained_on(loaded))
        return PredictedOutputs(outputs, loaded.spacing_mm, probabilities)

    def _write(self, case: Case, predicted: PredictedOutputs) -> None:
        """Write the mask of a case, and its probabilities.

        Raises:
            VolumeError: the mask cannot be written in this format.
            WriteError: the file cannot be written.
        """
        scheme, image = self._predictor.scheme, case.images[0]
        mask_format = choose_format(self._format_name, image)
        outputs = predicted.outputs
        if self._postprocessing:
            outputs = self._postprocessing.apply(outputs, scheme, predicted.spacing_mm)
        mask = Mask(scheme.to_mask(outputs), scheme.value_names, image, self._predictor.readers)
        target = mask_path(self._output, case, mask_format)
        mask_format.write(mask, target, lambda digest: str(origin_of(case, self._made_by, digest)))
        if self._probabilities is not None and predicted.probabilities is not None:
            names = scheme.output_names if scheme.sigmoid else scheme.names
            origin = str(origin_of(case, self._made_by, voxel_digest(mask.values)))
            content = Probabilities(predicted.probabilities, names, image, self._predictor.readers, origin)
            self._probabilities.format.write(content, self._probabilities.path(case))
