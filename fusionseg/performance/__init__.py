"""Measurements and models of speed for the programs of `profiling/`: profiles, roofline, benchmarks, scaling.

May import: `utils`, `config`, `observability`, `data`, `models`, `distributed`, `runs`, `training`.
"""
