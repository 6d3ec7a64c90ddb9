"""Swin UNETR and Swin Fusion UNETR: encoder, fused skip connections, context bridge."""

PATCH_MULTIPLE = 32
"""Voxels of a patch in each axis are a multiple of this: the patch embedding halves once, and four mergings follow."""
