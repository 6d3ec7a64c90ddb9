"""Simulated low resolution: a patch is sampled on a coarser grid, and interpolated to its own grid again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusionseg.config.registry import augmentations
from fusionseg.config.section import Probability
from fusionseg.data.loading.intensity.section import BatchedIntensitySection, ImageLayout, ShareRange, draw_uniform

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fusionseg.data.loading.augmentation_protocol import Drawn, Draws


@augmentations.register("low_resolution")
class LowResolutionConfig(BatchedIntensitySection):
    """Sample the patch on a random coarser grid, and interpolate it back. The axes are those of `augment.axes`."""

    order: ClassVar[int] = 60

    prob: Probability = 0.25
    """Probability that a sample is changed."""
    zoom: ShareRange = (0.5, 1.0)
    """Lowest and highest size of the coarser grid, as a share of the size of the patch."""
    channel_prob: Probability = 0.5
    """Probability that a channel of such a sample is changed."""
    per_axis: bool = False
    """Draw a zoom for each axis, instead of one for all of them."""
    down: Literal["nearest", "area"] = "nearest"
    """Values of the coarser grid: the nearest voxel, or the mean of the voxels in a cell."""
    up: Literal["linear", "cubic"] = "linear"
    """Interpolation back to the grid of the patch."""

    def draw(self, rng: np.random.Generator, layout: ImageLayout) -> dict[str, Any]:
        """Draw the zooms (C, 3); 1 for a channel that is not changed."""
        import numpy as np

        hit = rng.random(layout.channels) < self.channel_prob
        zoom = draw_uniform(rng, self.zoom, (layout.channels, 3 if self.per_axis else 1))
        changed = hit[:, None] & (np.arange(3) != layout.through_plane)
        return {"zoom": np.where(changed, zoom, 1.0)}

    def apply(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Change each channel (X, Y, Z) by its zooms."""
        from fusionseg.data.loading.axis_matrices import apply_along_axes, coarser

        for i, of_sample in enumerate(drawn.host["zoom"]):
            for channel, zoom in enumerate(of_sample):
                sizes = [max(1, round(size * float(z))) for size, z in zip(image.shape[2:], zoom, strict=True)]
                matrices = [
                    coarser(size, small, self.down, self.up) for size, small in zip(image.shape[2:], sizes, strict=True)
                ]
                apply_along_axes(image[i, channel], matrices, drawn.send)
        return image

    def arrays(self, draws: Draws, shape: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The matrices of each axis; the unit matrix for a channel that is not changed."""
        from fusionseg.data.loading.axis_matrices import coarser, matrices_of_all

        def matrix(size: int, zoom: float) -> NDArray[Any] | None:
            return coarser(size, max(1, round(size * float(zoom))), self.down, self.up)

        return matrices_of_all(draws, "zoom", shape, matrix)

    def apply_to_all(self, image: Tensor, sent: Mapping[str, Tensor]) -> Tensor:
        """Change each channel (X, Y, Z) by its zooms."""
        from fusionseg.data.loading.axis_matrices import apply_to_all_axes

        return apply_to_all_axes(image, sent)
