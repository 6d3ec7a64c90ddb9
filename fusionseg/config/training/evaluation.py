"""The `evaluate` section: settings of the metrics that `fusionseg evaluate` computes."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from fusionseg.config.section import SectionWithOptions


class EvaluateConfig(SectionWithOptions):
    """Settings of the metrics of `fusionseg evaluate`. They do not change the training, and can be given later:
    `fusionseg evaluate RUN evaluate.tolerance_mm=2`."""

    left_out: ClassVar[tuple[str, ...]] = ("tolerance_mm",)

    tolerance_mm: Annotated[float, Field(gt=0)] = 1.0
    """Distance in mm up to which two surfaces agree, for the normalised surface Dice (`nsd`). It should be about the
    disagreement of two experts. A tolerance below the size of the voxels counts exact agreement alone."""
