"""The cases of a run: its data sets, its split, and the checks that keep training and validation apart."""
