"""The plan of an experiment: a complete, commented configuration from the fingerprint of a data set.

May import: `utils`, `config`, `data`, `models`, `training`.
"""
