"""File formats of masks: NIfTI, NRRD, MetaImage, NumPy and DICOM-SEG. Each stores the origin of the mask too."""
