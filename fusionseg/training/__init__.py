"""The training loop: trainer, step, optimizer, precision, network, validation.

May import: `utils`, `config`, `observability`, `data`, `metrics`, `models`, `losses`, `distributed`, `runs`.
"""
