"""Accounts of a run over all its starts: the history of the starts, where the time went, and known troubles."""
