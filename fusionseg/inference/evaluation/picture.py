"""The picture of an evaluation: the best and the worst case, each with image, label and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.case_reader import read_image
from fusionseg.data.formats.dataset import Case
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.inference.evaluation.kept_masks import KeptMasks
from fusionseg.inference.evaluation.measuring import Score, ranked_cases
from fusionseg.inference.evaluation.scoring import Scorer
from fusionseg.observability.pictures import COLORS, paint
from fusionseg.utils.files import whole_file


def draw_best_and_worst(
    path: Path, scores: Sequence[Score], cases: Sequence[Case], scorer: Scorer, kept: KeptMasks | None = None
) -> None:
    """Write a PNG of the cases with the highest and the lowest mean Dice, each at the slice with the most foreground.

    Args:
        path: the PNG file.
        scores: the scores that the means count.
        cases: the cases of the evaluation.
        scorer: reads the labels.
        kept: the masks of the cases; without them, the two cases are predicted again.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    by_case = {case.name: case for case in cases}
    ranked = ranked_cases(scores)
    if not ranked:
        return
    dice = dict(ranked)
    chosen = [("best", ranked[-1][0])] + ([("worst", ranked[0][0])] if len(ranked) > 1 else [])
    figure, axes = plt.subplots(len(chosen), 3, figsize=(9, 3.4 * len(chosen)), squeeze=False)
    for row, (rank, name) in zip(axes, chosen, strict=True):
        case = by_case[name]
        source = read_image(case.images, readers=scorer.dataset.readers)
        affine = source.grid.affine
        prediction = scorer.drawn_prediction(case) if kept is None else kept.read(case)
        arrays = source.values[0], scorer.drawn_label(case), prediction
        image, label, mask = (_radiological(array, affine) for array in arrays)
        size = voxel_sizes(_canonical_affine(affine))
        depth = int(((label > 0) | (mask > 0)).sum(axis=(0, 1)).argmax())
        empty = np.zeros_like(label[:, :, depth])
        panels = (("image", empty), ("label", label[:, :, depth]), ("prediction", mask[:, :, depth]))
        for axis, (title, overlay) in zip(row, panels, strict=True):
            axis.imshow(paint(image[:, :, depth], overlay).transpose(1, 2, 0), aspect=size[1] / size[0])
            axis.set_title(f"{rank}: {name}, Dice {dice[name]:.3f}" if title == "image" else title, fontsize=9)
            axis.axis("off")
    names = scorer.predictor.scheme.output_names
    handles = [
        plt.Line2D([], [], marker="s", linestyle="", color=COLORS[k % len(COLORS)], label=n)
        for k, n in enumerate(names)
    ]
    figure.legend(handles=handles, loc="lower center", ncols=min(6, len(handles)), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1), h_pad=2)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def _radiological(array: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """Turn a volume so that an axial slice is shown in radiological convention.

    Anterior is up, and the right side of the patient is on the left.

    Args:
        array: (X, Y, Z).
        affine: 4x4, from a voxel to world coordinates in mm.
    """
    turned: NDArray[Any] = nib.orientations.apply_orientation(array, nib.io_orientation(affine))
    return turned[::-1]


def _canonical_affine(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine (4x4) with columns in the order right, anterior, superior. Its origin must not be used."""
    order = np.argsort(nib.io_orientation(affine)[:, 0])
    columns: NDArray[np.float64] = affine[:, [*order, 3]]
    return columns
