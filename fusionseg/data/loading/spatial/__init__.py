"""Spatial augmentations: the axes that they change, their plan, and the geometry of a patch."""
