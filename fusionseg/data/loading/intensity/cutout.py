"""Cutout: random boxes of a patch are replaced by one value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusionseg.config.registry import augmentations
from fusionseg.config.section import Positive, Probability
from fusionseg.data.loading.intensity.section import ImageLayout, IntensitySection, ShareRange, draw_uniform

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fusionseg.data.loading.augmentation_protocol import Drawn


@augmentations.register("cutout")
class CutoutConfig(IntensitySection):
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
        import numpy as np

        from fusionseg.data.loading.channel_statistics import channel_mean, channel_range

        fill = channel_mean(image) if self.fill == "mean" else channel_range(image)[0]
        shape = np.array(image.shape[2:])
        for i, (edges, places) in enumerate(zip(drawn.host["edge"], drawn.host["place"], strict=True)):
            sizes = np.clip(np.rint(edges * shape), 1, shape).astype(int)
            first = (places * (shape - sizes + 1)).astype(int)
            for size, start in zip(sizes[edges.any(axis=1)], first[edges.any(axis=1)], strict=True):
                x, y, z = (slice(int(a), int(a + n)) for a, n in zip(start, size, strict=True))
                image[i, :, x, y, z] = fill[i]
        return image
