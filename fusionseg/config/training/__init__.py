"""Sections about how a run trains: fine-tuning, and its ranks."""
