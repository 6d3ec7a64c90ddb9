"""The memory of a training: its estimate, from a step on tensors without data, and what fits into a given memory.

The step runs on torch's meta device, so that nothing is computed or allocated, and no GPU is needed to estimate its
memory.
"""
