"""Profiles of a run in one form for all tools, and their summary: phases, kernels, idle times, communication."""
