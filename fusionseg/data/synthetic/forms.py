"""The forms of synthetic data: names, classes and channels of each, and the function that draws its cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fusionseg.data.synthetic import abdomen, brain, chest
from fusionseg.data.synthetic.case import SynthCase


@dataclass(frozen=True)
class Form:
    """A form of data.

    Args:
        title: name of the data set.
        description: of the data set.
        channels: names of the channels.
        labels: names of the values 0, 1, 2, ... of the label files.
        least_size: smallest number of voxels in a row at which every class is there.
        make_case: function of (size, seed, index of the case).
    """

    title: str
    description: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    least_size: int
    make_case: Callable[[int, int, int], SynthCase]


DEFAULT_FORM = "vessels"
FORMS: Mapping[str, Form] = {
    DEFAULT_FORM: Form(
        "SynthPulmonaryArtery",
        "Synthetic chest CT with pulmonary arteries, drawn by fusionseg synth: no patients",
        ("CT",),
        ("background", "pulmonary_artery"),
        48,
        chest.make_case,
    ),
    "organs": Form(
        "SynthOrgans",
        "Synthetic abdominal CT with four organs, pancreas and tumour, drawn by fusionseg synth: no patients",
        ("CT",),
        abdomen.LABELS,
        24,
        abdomen.make_case,
    ),
    "regions": Form(
        "SynthBrainTumour",
        "Synthetic brain MRI of four sequences with nested parts of a tumour, drawn by fusionseg synth: no patients",
        brain.CHANNELS,
        brain.LABELS,
        24,
        brain.make_case,
    ),
}
