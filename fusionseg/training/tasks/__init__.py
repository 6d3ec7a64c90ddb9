"""Tasks: their interface, and what they share. `named` has the built-in ones: segmentation and pre-training."""
