"""Losses of segmentations and of masked reconstructions.

May import: `config`, `data`, `metrics`, `models`.
"""
