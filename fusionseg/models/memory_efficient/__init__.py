"""Layers that keep little memory for the backward pass."""
