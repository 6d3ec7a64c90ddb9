"""The checks of one case: every file read to its last byte, every problem named.

The rules are those of `fusionseg.data.formats.reader`, by which the other commands refuse a case; here they are
noted, and the facts of the case with them. Runs in the worker processes of `fusionseg.data.checks.dataset_check`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.data.formats.image_digest import image_digest
from fusionseg.data.formats.problems import CaseFacts
from fusionseg.data.formats.reader import Image, examine_image, examine_label

SAMPLES_PER_CHANNEL = 2000


def check_case(case: Case, num_classes: int, channels: int, patch: Sequence[int] | None = None) -> CaseFacts:
    """Check the images and the label of a case; nothing that is wrong with them raises."""
    facts = CaseFacts(case.name)
    try:
        image = examine_image(case.images, channels, facts)
        if image is not None:
            _describe(facts, image)
            _check_patch(facts, case, image.grid.shape, patch)
        grid = None if image is None else image.grid
        del image  # before the label is read
        label = None if case.label is None else examine_label(case.label, grid, num_classes, facts)
    except MemoryError:
        facts.add("error", case.images[0], "memory", "does not fit into memory", "check its size, or use fewer workers")
        return facts
    if label is not None:
        facts.label_dtype = label.dtype
        facts.label_voxels = {int(v): n for v, n in label.counts.items() if v in range(num_classes)}
        if case.label is not None and set(label.counts) == {0.0}:
            facts.add(
                "warning",
                case.label,
                "empty-foreground",
                "has no foreground voxel",
                "annotate the case, or leave it if nothing is to be found in it",
            )
    return facts


def _describe(facts: CaseFacts, image: Image) -> None:
    facts.shape = image.grid.shape
    facts.image_dtypes = list(image.dtypes)
    if image.grid.known:
        facts.spacing_mm = voxel_sizes(image.grid.affine)
        facts.orientation = image.grid.orientation
        if any(image.varies):  # all empty images are alike
            facts.digest = image_digest(image.values, image.grid.affine)
    for channel, values in enumerate(image.values):
        flat = values.reshape(-1)
        # An odd step, lest the sample follows one plane of an even-sized volume.
        sample = flat[:: (flat.size // SAMPLES_PER_CHANNEL) | 1]
        sample = sample[abs(sample) < float("inf")]
        if sample.size:
            low, high = float(flat.min()), float(flat.max())
            if abs(low) < float("inf") and abs(high) < float("inf"):
                facts.intensity[channel] = low, high, sample.copy()


def _check_patch(facts: CaseFacts, case: Case, shape: tuple[int, ...], patch: Sequence[int] | None) -> None:
    small = [f"{axis} ({n} < {p})" for axis, n, p in zip("xyz", shape, patch or shape, strict=True) if n < p]
    if small:
        facts.add(
            "warning",
            case.images[0],
            "small-volume",
            f"is smaller than the patch along {', '.join(small)}, as stored",
            "choose a smaller data.patch, or leave it: the volume is padded",
        )
