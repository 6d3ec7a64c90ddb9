"""Swin UNETR and Swin Fusion UNETR: the encoder, the network and its settings."""

PATCH_MULTIPLE = 32
"""Voxels of a patch in each axis are a multiple of this: the patch embedding halves once, and four mergings follow."""
