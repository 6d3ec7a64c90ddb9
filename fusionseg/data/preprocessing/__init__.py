"""Preparation of cases: reorient, resample, normalise, crop; the store of prepared cases."""
