"""Losses of segmentations and of reconstructions.

May import: `config`, `metrics`, `models`.
"""
