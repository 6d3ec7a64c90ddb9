"""Networks that a configuration can name: one module a family, with its section of the configuration and its builder.

Each module registers its section (`@networks.register()`), and every module here is imported at the first lookup. They
import torch and MONAI only where a network is built, so that reading a configuration stays fast.
"""
