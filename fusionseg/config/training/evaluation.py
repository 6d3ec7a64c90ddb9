"""The `evaluate` section: settings of the metrics that `fusionseg evaluate` computes."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from fusionseg.config.section import SectionWithOptions

Names = Annotated[tuple[str, ...], Field(strict=False)]


class EvaluateConfig(SectionWithOptions):
    """Settings of the metrics of `fusionseg evaluate`. They do not change the training, and can be given later:
    `fusionseg evaluate RUN evaluate.tolerance_mm=2`."""

    left_out: ClassVar[tuple[str, ...]] = (
        "tolerance_mm",
        "lesions",
        "lesion_iou",
        "lesion_min_ml",
        "vessels",
        "calibre_mm",
    )

    tolerance_mm: Annotated[float, Field(gt=0)] = 1.0
    """Distance in mm up to which two surfaces agree, for the normalised surface Dice (`nsd`). It should be about the
    disagreement of two experts. A tolerance below the size of the voxels counts exact agreement alone."""
    lesions: Names = ()
    """Names of the classes, or regions, whose lesions are detected one by one, such as [tumour]: sensitivity, false
    positives, F1 and Dice per lesion, and the file lesions.csv. A lesion is a connected component."""
    lesion_iou: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """A true and a predicted lesion can be matched if their intersection over union is larger than this."""
    lesion_min_ml: Annotated[float, Field(ge=0)] = 0.0
    """Smallest volume of a lesion in ml. Smaller ones are left out of label and prediction."""
    vessels: Names = ()
    """Names of the classes, or regions, that are vessels, airways or other tubes, such as [artery]: clDice, the share
    of branches that are found, and the file branches.csv."""
    calibre_mm: Annotated[float, Field(gt=0)] = 2.5
    """Diameter in mm that separates thin branches from thick ones. A vessel of 2.5 mm has a cross-section of 5 mm²,
    below which pulmonary vessels are usually called small."""
