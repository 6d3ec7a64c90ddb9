"""Saving of checkpoints with all ranks."""
