"""Weights of classes and cases in the sampling plan, from the section `data.sampling` and the training cases."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from fusionseg.config.data.sampling import SamplingConfig
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.record import PreparedCase
from fusionseg.utils.errors import UserError

KEY = "data.sampling.class_weights"


@dataclass(frozen=True)
class SampledCase:
    """A training case as the weights see it.

    Args:
        voxels: class index -> prepared voxels, for each foreground class that can be at the centre of a patch.
        weight: of the case, by `data.weight`.
    """

    voxels: Mapping[int, int]
    weight: float = 1.0

    @staticmethod
    def of(record: PreparedCase, weight: float | None) -> SampledCase:
        """Make the description of a prepared case.

        Args:
            record: of the case.
            weight: of the case; None counts as 1.
        """
        counts = dict(zip(record.classes, np.diff(record.class_offsets).tolist(), strict=True))
        counts |= {value: left for value, *_, left in record.class_voxels if value in counts}
        counts = {index: counts[index] for index in record.centre_classes}
        return SampledCase(counts, 1.0 if weight is None else weight)


@dataclass(frozen=True)
class SamplingWeights:
    """The weights of classes and cases."""

    classes: Mapping[int, float] | None = None
    """Weight by class index; a class that is not named has weight 1. None draws the classes of a case evenly."""
    cases: tuple[float, ...] | None = None
    """Weight of each case; None draws every case equally often."""

    @property
    def is_weighted(self) -> bool:
        """True if classes or cases are not drawn evenly."""
        return self.classes is not None or self.cases is not None

    def class_shares(self, classes: Sequence[int]) -> list[float] | None:
        """The probabilities of the classes of a case; None if no class of it is ever drawn.

        Args:
            classes: the indices of its foreground classes.
        """
        weights = [1.0 if self.classes is None else self.classes.get(value, 1.0) for value in classes]
        total = sum(weights)
        return [weight / total for weight in weights] if total > 0 else None

    def expected_shares(self, cases: Sequence[SampledCase], foreground: float) -> dict[int, float]:
        """The expected share of patches that are centred on each class; 0 stands for patches at any position.

        Args:
            cases: the training cases.
            foreground: `data.foreground`.
        """
        drawn = self.cases or (1.0,) * len(cases)
        total = sum(drawn)
        found: defaultdict[int, float] = defaultdict(float)
        for case, weight in zip(cases, drawn, strict=True):
            share = weight / total
            shares = self.class_shares(list(case.voxels))
            found[0] += share if shares is None else share * (1 - foreground)
            for value, part in zip(case.voxels, shares or [0.0] * len(case.voxels), strict=True):
                found[value] += share * foreground * part
        return dict(sorted(found.items()))


EVEN = SamplingWeights()


def named_weights(sampling: SamplingConfig | None, scheme: LabelScheme) -> dict[int, float] | None:
    """The weights that the configuration states by name, by class index; None if it states none.

    Args:
        sampling: the section `data.sampling`.
        scheme: the labels of the data set.

    Raises:
        UserError: there is no class of a name, or no class would be drawn.
    """
    if sampling is None or not isinstance(sampling.class_weights, dict):
        return None
    names = scheme.names
    problems = [
        f"{KEY}.{name}: there is no such class in the data set; {scheme.valid_classes(name)}"
        for name in sampling.class_weights
        if name not in names[1:]
    ]
    weights = {names.index(name): weight for name, weight in sampling.class_weights.items() if name in names[1:]}
    if not problems and all(weights.get(index, 1.0) == 0 for index in range(1, len(names))):
        problems.append(f"{KEY}: no class has a weight above 0; raise one, or set data.foreground: 0")
    if problems:
        raise UserError(problems)
    return weights


def sampling_weights(
    sampling: SamplingConfig | None, scheme: LabelScheme, cases: Sequence[SampledCase]
) -> SamplingWeights:
    """Compute the weights of a run.

    Args:
        sampling: the section `data.sampling`.
        scheme: the labels of the data set.
        cases: the training cases.

    Raises:
        UserError: there is no class of a name, or no class would be drawn.
    """
    classes = named_weights(sampling, scheme)
    if sampling is not None and isinstance(sampling.class_weights, str):
        voxels: Counter[int] = Counter()
        for case in cases:
            voxels.update(case.voxels)
        root = sampling.class_weights == "inverse_sqrt_frequency"
        most = max(voxels.values(), default=1)
        classes = {
            value: sqrt(most / count) if root else most / count for value, count in sorted(voxels.items()) if count
        }
    weights = tuple(case.weight for case in cases)
    if sampling is not None and sampling.case_weights == "rare_classes":
        weights = tuple(a * b for a, b in zip(weights, _repeat_factors(cases), strict=True))
    return SamplingWeights(classes, weights if len(set(weights)) > 1 else None)


def _repeat_factors(cases: Sequence[SampledCase]) -> list[float]:
    """The repeat factor of each case: that of its rarest class, relative to the most common class."""
    share = Counter(value for case in cases for value, count in case.voxels.items() if count)
    most = max(share.values(), default=1)
    return [max((sqrt(most / share[value]) for value in case.voxels if share[value]), default=1.0) for case in cases]
