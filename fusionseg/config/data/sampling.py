"""The section `data.sampling`: classes and cases that are drawn more often than others."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fusionseg.config.section import Section

ClassWeights = Literal["inverse_frequency", "inverse_sqrt_frequency"] | dict[str, Annotated[float, Field(ge=0)]]


class SamplingConfig(Section):
    """Classes and cases that are drawn more often than others."""

    class_weights: ClassWeights | None = None
    """Weights of the classes of a case when the class at the centre of a foreground patch is drawn (as `ratios` of
    MONAI's RandCropByLabelClasses). A mapping of names to weights, {tumour: 4, liver: 1}, in which other classes have
    weight 1, and a class of weight 0 is never at the centre (names of classes as `fusionseg check` lists them, not of
    regions); `inverse_frequency`: one over the voxels of the class in
    the training cases; `inverse_sqrt_frequency`: one over their square root. Null draws them evenly."""
    case_weights: Literal["rare_classes"] | None = None
    """`rare_classes`: a case is drawn in proportion to sqrt(f_max / f), f the share of training cases that have its
    rarest class and f_max that of the most common class (repeat factor sampling, Gupta et al., 2019, arXiv:1908.03195).
    Null draws every case once in each epoch. `data.weight` names weights of your own; both are multiplied."""

    @model_validator(mode="after")
    def _something_is_drawn(self) -> SamplingConfig:
        if isinstance(self.class_weights, dict):
            if not self.class_weights:
                raise ValueError("class_weights: names no class; add one, such as {tumour: 2}, or remove it")
            if "background" in self.class_weights:
                raise ValueError(
                    "class_weights.background: is not drawn by its weight; the share of patches at any position is"
                    " 1 - data.foreground; remove it"
                )
        return self
