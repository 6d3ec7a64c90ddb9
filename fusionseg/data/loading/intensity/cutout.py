"""Cutout: random boxes of a patch are replaced by one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusionseg.config.registry import augmentations
from fusionseg.config.section import Positive, Probability
from fusionseg.data.loading.intensity.section import BatchedIntensitySection, ImageLayout, ShareRange, draw_uniform

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fusionseg.data.loading.augmentation_protocol import Drawn, Draws


@augmentations.register("cutout")
class CutoutConfig(BatchedIntensitySection):
    """Replace random boxes of the image by one value (DeVries and Taylor, 2017, arXiv:1708.04552)."""

    order: ClassVar[int] = 90

    prob: Probability = 0.1
    """Probability that a sample is changed."""
    boxes: Positive = 4
    """Largest number of boxes; each number from 1 to it has the same chance."""
    size: ShareRange = (0.1, 0.3)
    """Shortest and longest edge of a box, as a share of the edge of the patch; each edge is drawn."""
    fill: Literal["mean", "lowest"] = "mean"
    """The value: the mean, or the lowest intensity, of each channel of the patch."""

    def draw(self, rng: np.random.Generator, layout: ImageLayout) -> dict[str, Any]:
        """Draw the edges and the places of the boxes, (boxes, 3) each; the edges of a box that is not used are 0."""
        import numpy as np

        used = np.arange(self.boxes) <= int(rng.random() * self.boxes)
        edge = draw_uniform(rng, self.size, (self.boxes, 3))
        return {"edge": np.where(used[:, None], edge, 0.0), "place": rng.random((self.boxes, 3))}

    def apply(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Fill the boxes of each image (C, X, Y, Z)."""
        from fusionseg.data.loading.channel_statistics import channel_mean, channel_range

        fill = channel_mean(image) if self.fill == "mean" else channel_range(image)[0]
        for i, (edges, places) in enumerate(zip(drawn.host["edge"], drawn.host["place"], strict=True)):
            for start, stop in _boxes(edges, places, image.shape[2:]):
                x, y, z = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
                image[i, :, x, y, z] = fill[i]
        return image

    def arrays(self, draws: Draws, shape: Sequence[int]) -> dict[str, NDArray[Any]]:
        """For each axis, the coordinates inside of each box: (B, boxes, X, 1, 1), (B, boxes, 1, Y, 1), ..."""
        import numpy as np

        found = {}
        inside = [np.zeros((shape[0], self.boxes, size), np.bool_) for size in shape[2:]]
        for i, edges, places in zip(
            np.flatnonzero(draws.hit), draws.values["edge"], draws.values["place"], strict=True
        ):
            for box, (start, stop) in enumerate(_boxes(edges, places, shape[2:])):
                for axis in range(3):
                    inside[axis][i, box, start[axis] : stop[axis]] = True
        for axis, of_axis in enumerate(inside):
            found[f"inside_{axis}"] = np.expand_dims(of_axis, [other + 2 for other in range(3) if other != axis])
        return found

    def apply_to_all(self, image: Tensor, sent: Mapping[str, Tensor]) -> Tensor:
        """Fill the boxes of each image (C, X, Y, Z)."""
        voxels = (2, 3, 4)
        fill = image.mean(voxels, keepdim=True) if self.fill == "mean" else image.amin(voxels, keepdim=True)
        inside = (sent["inside_0"] & sent["inside_1"] & sent["inside_2"]).any(dim=1, keepdim=True)
        return fill.where(inside, image)


def _boxes(edges: NDArray[Any], places: NDArray[Any], patch: Sequence[int]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """The first voxel of each used box of a sample, and the last one plus one: (3,) each."""
    import numpy as np

    shape = np.array(patch)
    sizes = np.clip(np.rint(edges * shape), 1, shape).astype(int)
    first = (places * (shape - sizes + 1)).astype(int)
    used = edges.any(axis=1)
    return list(zip(first[used], first[used] + sizes[used], strict=True))
