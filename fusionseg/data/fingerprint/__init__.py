"""The fingerprint of a data set: the measurements of its cases, outliers among them, and the files that show them."""
