"""Data sets, from their files to batches on the device.

May import: `utils`, `config`, `observability`.
"""
