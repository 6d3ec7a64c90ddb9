"""The run folder: the only reader and writer of its configuration, split, records, checkpoints, status and evaluations.

May import: `utils`, `config`, `data`, `models`.
"""
