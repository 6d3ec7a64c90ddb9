"""A search over the hyper-parameters of a sweep by successive halving: its file, its state, its decisions."""
