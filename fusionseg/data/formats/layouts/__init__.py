"""The cases of a data set in the layouts that name them by folders and file names."""
