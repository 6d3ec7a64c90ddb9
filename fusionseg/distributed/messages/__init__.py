"""Messages between threads of the ranks, beside the collectives of the training."""
