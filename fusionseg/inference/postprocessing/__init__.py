"""Post-processing of masks: largest component, holes, smallest size; chosen on the masks of validation cases."""
