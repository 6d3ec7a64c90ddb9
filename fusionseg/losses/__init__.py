"""Losses of segmentations and of masked reconstructions.

May import: `config`, `metrics`, `models`.
"""
