"""Gaussian blur."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fusionseg.config.registry import augmentations
from fusionseg.config.section import Probability
from fusionseg.data.loading.intensity.section import BatchedIntensitySection, ImageLayout, PositiveRange, draw_uniform

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fusionseg.data.loading.augmentation_protocol import Drawn, Draws


@augmentations.register("blur")
class BlurConfig(BatchedIntensitySection):
    """Blur by a Gaussian of random width, along all axes, whatever `augment.axes` is (as in nnU-Net)."""

    order: ClassVar[int] = 40

    prob: Probability = 0.2
    """Probability that a sample is changed."""
    sigma: PositiveRange = (0.5, 1.0)
    """Lowest and highest standard deviation, in voxels."""
    channel_prob: Probability = 0.5
    """Probability that a channel of such a sample is blurred."""
    per_axis: bool = True
    """Draw a width for each axis, instead of one for all of them."""

    def draw(self, rng: np.random.Generator, layout: ImageLayout) -> dict[str, Any]:
        """Draw the widths (C, 3) in voxels; 0 for a channel that is not blurred."""
        import numpy as np

        hit = rng.random(layout.channels) < self.channel_prob
        sigma = draw_uniform(rng, self.sigma, (layout.channels, 3 if self.per_axis else 1))
        return {"sigma": np.broadcast_to(np.where(hit[:, None], sigma, 0.0), (layout.channels, 3))}

    def apply(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Blur each channel (X, Y, Z) by its widths."""
        from fusionseg.data.loading.axis_matrices import apply_along_axes, gaussian

        for i, of_sample in enumerate(drawn.host["sigma"]):
            for channel, sigma in enumerate(of_sample):
                if sigma.any():
                    matrices = [gaussian(size, float(s)) for size, s in zip(image.shape[2:], sigma, strict=True)]
                    apply_along_axes(image[i, channel], matrices, drawn.send)
        return image

    def arrays(self, draws: Draws, shape: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The matrices of each axis; the unit matrix for a channel that is not blurred."""
        from fusionseg.data.loading.axis_matrices import gaussian, matrices_of_all

        return matrices_of_all(draws, "sigma", shape, lambda size, sigma: gaussian(size, float(sigma)))

    def apply_to_all(self, image: Tensor, sent: Mapping[str, Tensor]) -> Tensor:
        """Blur each channel (X, Y, Z) by its widths."""
        from fusionseg.data.loading.axis_matrices import apply_to_all_axes

        return apply_to_all_axes(image, sent)
