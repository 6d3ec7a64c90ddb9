"""The run folder: the only reader and writer of its configuration, split, records, checkpoints and status.

May import: `utils`, `config`, `data`, `models`.
"""
