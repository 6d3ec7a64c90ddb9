"""Data set layouts (MSD, nnU-Net, datalist) and the reader of their files."""
