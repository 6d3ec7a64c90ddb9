"""Observation of running programs: NVTX ranges, progress, TensorBoard, pictures, profiles, GPU counters.

May import: `utils`.
"""
