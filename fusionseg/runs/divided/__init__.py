"""Checkpoints that are divided among the ranks: a folder with a file of each rank and an index, whole or not at all."""
