"""Sinks: TensorBoard, trackers and a user's own, which receive the records of a run while it trains."""
