"""Losses that a configuration can name: their sections, and the loss of a part from outside."""
