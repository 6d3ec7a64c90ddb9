"""Optimizers that a configuration can name: their sections, and the optimizer of a part from outside."""
