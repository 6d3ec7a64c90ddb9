"""Export of trained networks: programs for other libraries, their contract, and a runner without torch.

May import: `utils`, `config`, `data`, `runs`, `inference`.
"""
