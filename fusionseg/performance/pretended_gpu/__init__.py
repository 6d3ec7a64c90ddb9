"""A pretended GPU: the real training on `cuda:0` without a GPU, to count its device operators and find waits.

A preloaded library makes a CPU build of torch report a CUDA device, and `FakeTensorMode` gives every operator on it the
shapes, types and devices of its results without computing them. So the trainer takes all the decisions that it takes on
a GPU, and every operator that it would launch is seen. Nothing can be said about values, seconds, or what the driver
does.

`library` builds the library and restarts a program with it, `device` completes what torch says of the device,
`ranks` adds further ranks, `operator_count` counts, `pretended_run` builds a training.
"""
