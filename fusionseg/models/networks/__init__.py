"""Networks that a configuration can name: one module for each family, with its `model` section and its builder.

Each module registers its section with `@networks.register()`. All modules of this folder are imported at the first
lookup of a network. They import torch and MONAI only in `build`, so that reading a configuration is fast.
"""
