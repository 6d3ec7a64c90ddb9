"""Parts of the sampling plan: the order of the cases, the positions of patches, weights, and counts."""
