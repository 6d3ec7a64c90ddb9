"""Logits of a volume in closed rows: windows in order along one axis, and the way of the rows to the grid of the file.

The modules hold tensors and geometry; they know no files. They may import `fusionseg.training` and what it imports.
"""
