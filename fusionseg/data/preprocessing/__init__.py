"""Preparation of cases: reorient, resample, crop, transform, normalise; the store of prepared cases."""
