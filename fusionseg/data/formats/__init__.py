"""Layouts of data sets (MSD, nnU-Net, datalist), and the readers of their image files."""
