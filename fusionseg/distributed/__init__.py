"""Launch environment, process group, collectives, gradient all-reduce, batch arithmetic and load balancing.

May import: `utils`, `config`, `observability`.
"""
