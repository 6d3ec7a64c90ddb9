"""Layers that keep little memory for the backward pass, with hand-written gradients."""
