"""Metrics of segmentations and of reconstructions.

May import: nothing.
"""
