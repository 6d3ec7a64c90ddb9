"""Numbers of a training beside those of its step: averaged weights, determinism, spikes of the loss."""
