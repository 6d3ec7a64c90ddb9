"""The synthetic data set of `fusionseg synth`."""
