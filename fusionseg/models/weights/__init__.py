"""Weights that were trained elsewhere: tensor names, other shapes, loading."""
