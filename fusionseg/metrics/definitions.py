"""Definitions of the metrics: formula, unit, direction, and the value of a class that is absent.

An evaluation writes them into its summary. Tables rank and format the metrics by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MetricDefinition:
    """The definition of a metric.

    Args:
        name: in files, such as `hd95_mm`.
        title: in tables, with the unit.
        text: the formula. P are the voxels of the predicted mask, T those of the true mask.
        unit: "share" for values from 0 to 1, "mm", "ml", "dB", "count"; "" if it has none.
        higher_is_better: None if neither direction is better, as for a signed error.
        digits: decimal places in tables.
        absent: the value of a class that is empty in one mask or in both.
        source: the publication or the program that defines it.
    """

    name: str
    title: str
    text: str
    unit: str
    higher_is_better: bool | None
    digits: int
    absent: str
    source: str

    def to_json(self, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The definition as plain values, for the summary of an evaluation.

        Args:
            parameters: the settings that the values depend on, such as the tolerance in mm.
        """
        return {
            "text": self.text,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "absent": self.absent,
            "source": self.source,
            "parameters": dict(parameters or {}),
        }

    @property
    def is_penalised(self) -> bool:
        """Whether a class that a network misses has the worst value; otherwise it has none, or that is not known."""
        return self.absent not in (_EMPTY, _EMPTY_PREDICTION, OWN_RULE, "")


_EMPTY_OR_ZERO = "empty in both masks: no value; empty in one of them: 0"
_EMPTY = "empty in one mask or in both: no value"
_EMPTY_PREDICTION = "empty in the prediction: no value; empty in the label alone: 0"
_NEVER = "always has a value"
OWN_RULE = "as the metric says"
"""`absent` of a metric that is not built in."""
_MAIER_HEIN = "Maier-Hein, Reinke et al., Nature Methods 21, 2024, doi:10.1038/s41592-023-02151-z"
_TAHA = "Taha and Hanbury, BMC Medical Imaging 15:29, 2015, doi:10.1186/s12880-015-0068-x"
_WANG = "Wang et al., IEEE Transactions on Image Processing 13(4), 2004, doi:10.1109/TIP.2003.819861"
_SURFACE = (
    "The surface of a mask consists of its voxels with a face neighbour outside of the mask; everything beyond the"
    " border of the volume is outside. Distances are between centres of voxels, in mm."
)

_OVERLAP = (
    MetricDefinition(
        "dice",
        "Dice",
        "2 |P and T| / (|P| + |T|)",
        "share",
        True,
        4,
        _EMPTY_OR_ZERO,
        "Dice, Ecology 26(3), 1945, doi:10.2307/1932409",
    ),
    MetricDefinition(
        "iou",
        "IoU",
        "|P and T| / |P or T|, the Jaccard index",
        "share",
        True,
        4,
        _EMPTY_OR_ZERO,
        "Jaccard, New Phytologist 11(2), 1912, doi:10.1111/j.1469-8137.1912.tb05611.x",
    ),
    MetricDefinition(
        "sensitivity",
        "sensitivity",
        "|P and T| / |T|, the recall",
        "share",
        True,
        4,
        "empty in the label: no value; empty in the prediction alone: 0",
        _TAHA,
    ),
    MetricDefinition(
        "precision",
        "precision",
        "|P and T| / |P|, the positive predictive value",
        "share",
        True,
        4,
        _EMPTY_PREDICTION,
        _TAHA,
    ),
)
_SURFACES = (
    MetricDefinition(
        "hd95_mm",
        "HD95 mm",
        "95 % Hausdorff distance: the 95th percentile (with linear interpolation) of the distances from each surface"
        f" voxel of one mask to the nearest of the other, in both directions; the larger of the two. {_SURFACE} This is"
        " the definition of MONAI. Others differ by much: medpy takes the percentile of the distances of both"
        " directions together; DeepMind's surface-distance weights each distance by its area of surface.",
        "mm",
        False,
        2,
        _EMPTY,
        "Huttenlocher et al., IEEE TPAMI 15(9), 1993, doi:10.1109/34.232073; MONAI compute_hausdorff_distance",
    ),
    MetricDefinition(
        "assd_mm",
        "ASSD mm",
        "average symmetric surface distance: the mean of the distances of both directions together, from each surface"
        f" voxel of one mask to the nearest of the other. {_SURFACE} This is the definition of MONAI (symmetric)."
        " Others take the mean of the two means of the directions.",
        "mm",
        False,
        2,
        _EMPTY,
        "Heimann et al., IEEE TMI 28(8), 2009, doi:10.1109/TMI.2009.2013851; MONAI compute_average_surface_distance",
    ),
    MetricDefinition(
        "nsd",
        "NSD",
        "normalised surface Dice: the share of the area of both surfaces that is at most `tolerance_mm` away from the"
        " other surface. The surface elements lie between 2 x 2 x 2 voxels, and have the area that marching cubes"
        " gives. This is the definition of DeepMind's surface-distance. MONAI's SurfaceDiceMetric counts surface voxels"
        " unless use_subvoxels is set.",
        "share",
        True,
        4,
        _EMPTY_OR_ZERO,
        "Nikolov et al., Journal of Medical Internet Research 23(7), 2021, doi:10.2196/26151",
    ),
)
_VOLUMES = (
    MetricDefinition(
        "volume_ml_error",
        "volume error ml",
        "predicted volume minus true volume; a positive value is too large",
        "ml",
        None,
        3,
        "empty in both masks: 0; it always has a value",
        "",
    ),
    MetricDefinition(
        "volume_similarity",
        "volume similarity",
        "1 - ||P| - |T|| / (|P| + |T|); 1 for equal volumes, wherever they lie. SimpleITK's measure of this name is"
        " another one, 2 (|P| - |T|) / (|P| + |T|).",
        "share",
        True,
        4,
        _EMPTY_OR_ZERO,
        _TAHA,
    ),
)
_COMPONENTS = (
    "A lesion is a connected component of 26 neighbours with at least `min_ml` ml. Lesions of P and T with an IoU above"
    " `min_iou` are matched one to one, by the matching with the largest sum of IoUs."
)
_BRANCH = (
    "A branch is a piece of the centreline of T between junctions; it is found if at least the share `min_covered` of"
    " its voxels is in P."
)
_CALIBRE = "Its diameter is twice the median distance from its voxels to the nearest voxel outside of T."
_NO_TRUE_LESION = "no lesion in the label: no value; none in the prediction alone: 0"
_NO_BRANCH = "no branch of this kind in the label: no value"
_SHIT = "Shit et al., CVPR 2021, doi:10.1109/CVPR46437.2021.01629"
_LESIONS = tuple(
    MetricDefinition(name, title, f"{text}. {_COMPONENTS}", unit, higher, digits, absent, _MAIER_HEIN)
    for name, title, text, unit, higher, digits, absent in (
        ("lesion_sensitivity", "lesion sensitivity", "matched lesions of T / lesions of T", "share", True, 4,
         _NO_TRUE_LESION),
        ("lesion_false_positives", "false lesions", "number of lesions of P without a match", "count", False, 2,
         "no lesion in the prediction: 0; it always has a value"),
        ("lesion_f1", "lesion F1", "2 TP / (2 TP + FP + FN) of lesions", "share", True, 4,
         "no lesion in both masks: no value; none in one of them: 0"),
        ("lesion_dice", "lesion Dice", "mean Dice of the lesions of T with their match, 0 for a missed one", "share",
         True, 4, _NO_TRUE_LESION),
    )
)  # fmt: skip
_VESSELS = (
    MetricDefinition(
        "cl_dice",
        "clDice",
        "harmonic mean of two shares: of the centreline of P that is in T, and of the centreline of T that is in P."
        " The centrelines are those of scikit-image's skeletonize (Lee), on the voxel grid.",
        "share",
        True,
        4,
        f"{_EMPTY_OR_ZERO}; no value also if the thinning leaves nothing of a mask, as of a solid block",
        _SHIT,
    ),
    *(
        MetricDefinition(name, title, f"found branches / branches{which} {_BRANCH}", "share", True, 4, _NO_BRANCH, "")
        for name, title, which in (
            ("branches_found", "branches found", "."),
            ("thin_branches_found", "thin branches found", f" with a diameter below `calibre_mm`. {_CALIBRE}"),
            ("thick_branches_found", "thick branches found", f" with a diameter of `calibre_mm` or more. {_CALIBRE}"),
        )
    ),
)
_RECONSTRUCTIONS = tuple(
    MetricDefinition(f"{name}{suffix}", f"{title}{where}", f"{text}{where}", unit, True, digits, _NEVER, source)
    for suffix, where in (("", ""), ("_hidden", ", hidden voxels"))
    for name, title, text, unit, digits, source in (
        ("ssim", "SSIM", "mean structural similarity", "share", 4, _WANG),
        ("psnr", "PSNR dB", "peak signal-to-noise ratio, at most 100 dB", "dB", 2, ""),
    )
)

DEFINITIONS: Mapping[str, MetricDefinition] = {
    one.name: one for one in (*_OVERLAP, *_SURFACES, *_VOLUMES, *_LESIONS, *_VESSELS, *_RECONSTRUCTIONS)
}
"""The definitions by name."""
DEFAULT_METRICS = tuple(one.name for one in (*_OVERLAP, *_SURFACES, *_VOLUMES))
"""The metrics that every evaluation of a segmentation has, in the order of its tables."""
LESION_METRICS = tuple(one.name for one in _LESIONS)
"""The metrics of the classes that `evaluate.lesions` names."""
VESSEL_METRICS = tuple(one.name for one in _VESSELS)
"""The metrics of the classes that `evaluate.vessels` names."""


def definition_of(name: str) -> MetricDefinition | None:
    """Find the definition of a metric.

    Args:
        name: `dice`, or a column of a comparison: `dice_per_class.liver (prepared)` is the Dice too, and
            `metrics.iou.mean (prepared)` the IoU.

    Returns:
        The definition; None for a metric of the user's own, and for a measurement such as `total_s`.
    """
    plain = name.split(" (")[0].removeprefix("metrics.").split(".")[0].removesuffix("_per_class")
    return DEFINITIONS.get(plain)


def title_and_digits(name: str, definition: MetricDefinition | None) -> tuple[str, int]:
    """The title of a metric in tables, and its decimal places.

    Args:
        name: in files, which is the title of a metric without a definition.
        definition: of the metric.
    """
    return (name, 4) if definition is None else (definition.title, definition.digits)


def recorded_definition(name: str, content: Mapping[str, Any]) -> MetricDefinition:
    """The definition of a metric that an evaluation recorded, for metrics with a title of the user's.

    Args:
        name: the title, which is also the column of cases.csv.
        content: the entry of `definitions` in the summary of the evaluation.
    """
    higher = content.get("higher_is_better")
    texts = {key: str(content.get(key) or "") for key in ("text", "unit", "absent", "source")}
    return MetricDefinition(
        name, name, **texts, higher_is_better=higher if isinstance(higher, bool) else None, digits=4
    )
