"""Built-in tasks that a configuration can name: one module for each.

Each module registers its task with `@tasks.register(name)`. All modules of this folder are imported at the first lookup
of a task, also by rooms that need the description `info` of a task alone. They import torch, MONAI and the other rooms
only in the methods, so that reading a configuration is fast.
"""
