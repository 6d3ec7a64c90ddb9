"""Sections whose implementation is in another room: the interfaces, and the field that chooses one by its name."""
