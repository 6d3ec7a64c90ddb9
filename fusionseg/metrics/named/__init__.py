"""Metrics of a segmentation that a configuration can name under `metrics`.

Each maps a predicted and a true mask, (X, Y, Z) tensors of class indices, to one value for each foreground class; nan
where a class has none.
"""
