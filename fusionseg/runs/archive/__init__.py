"""Archives of trained networks (`model.fseg`): one file without code, read only after its hashes were compared."""
