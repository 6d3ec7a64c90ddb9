"""Measurements and models of speed that `profiling/` runs: traces, roofline, scaling.

May import: `utils`, `config`, `observability`, `data`, `models`, `distributed`, `runs`, `training`, `inference`.
"""
