"""Trained networks in use: prediction, evaluation, comparison.

May import: `utils`, `config`, `observability`, `data`, `metrics`, `models`, `distributed`, `runs`, `training`.
"""
