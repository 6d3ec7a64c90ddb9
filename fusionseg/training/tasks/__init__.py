"""Tasks: their interface, segmentation and pre-training, with the validation of each."""
