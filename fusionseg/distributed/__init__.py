"""Ranks: the launch environment, the process group, collectives, the gradient all-reduce, batch arithmetic.

May import: `utils`, `config`, `observability`.
"""
