"""DICOM: the files of a folder, the headers of their slices, the series, its geometry and its voxels."""
