"""Pathology tiles: RGB images of one class each, classified by a small network.

It is the third task, beside segmentation and pre-training, and it is outside the core: a configuration names its parts
by dotted paths, as a user's own parts (docs/extending.md), and no other room imports it.

May import: `utils`, `config`, `data`, `models`, `distributed`, `training`.
"""
