"""The meaning of a data set's label values: classes, regions, the ignore label; from and to the values of files."""
