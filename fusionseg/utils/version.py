"""The version of the package. setup.cfg reads it from here, and so do the records of a run."""

__version__ = "0.1.0"
