"""Prepared cases on the device: cache, sampling plan, crops and augmentation."""
