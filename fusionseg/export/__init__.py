"""Export of trained networks: programs for other libraries, their contract, and a runner; archives; model cards.

May import: `utils`, `config`, `data`, `observability`, `runs`, `inference`.
"""
