"""Old name of `fusionseg.cluster.job`."""

from fusionseg.cluster.job import Job

__all__ = ["Job"]
