"""The tasks: segmentation and pre-training."""
