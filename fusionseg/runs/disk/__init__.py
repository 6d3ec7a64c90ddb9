"""Disks that refuse to write in the middle of a run: when to try again, and what the run folder says about it."""
