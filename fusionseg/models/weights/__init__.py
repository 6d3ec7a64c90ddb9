"""Loading of weights from files of this and of other programs."""
