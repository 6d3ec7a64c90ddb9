"""Profiles of a run: the timeline of a trace, and the time of each phase in it."""
