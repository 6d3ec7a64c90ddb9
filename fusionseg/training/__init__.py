"""The training of a run, from its start to its end: loop, step, network, optimizer, precision, tasks, observers.

May import: `utils`, `config`, `observability`, `data`, `metrics`, `models`, `losses`, `distributed`, `runs`.
"""
