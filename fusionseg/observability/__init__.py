"""Output of a run while it trains: NVTX ranges, progress, records, TensorBoard, pictures.

May import: `utils`.
"""
