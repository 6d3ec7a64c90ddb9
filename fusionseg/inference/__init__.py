"""Trained networks in use: prediction, evaluation, comparison.

May import: `utils`, `config`, `observability`, `data`, `metrics`, `distributed`, `runs`, `training`.
"""
