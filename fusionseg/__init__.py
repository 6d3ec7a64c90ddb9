"""fusionseg: distributed training for 3D medical image segmentation.

Importing the package is light on purpose: torch and MONAI are imported by the modules that use them, so that
``fusionseg --help`` answers at once.
"""

__version__ = "0.1.0"
