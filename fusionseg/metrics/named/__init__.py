"""Metrics of a segmentation that a configuration can name under `metrics`.

A metric maps a predicted and a true mask, tensors (X, Y, Z) of class indices, to one value for each foreground class.
The value is nan if it is not defined for a class.
"""
