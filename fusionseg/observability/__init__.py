"""Observation of running programs: NVTX ranges, progress, records, TensorBoard, pictures, profiles, GPU counters.

May import: `utils`.
"""
