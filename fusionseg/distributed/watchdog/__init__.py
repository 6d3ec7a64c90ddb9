"""Watchdog: a thread of each rank that notices when no rank makes progress, and says which rank is missed."""
