"""Networks whose weights are divided among the ranks (FSDP2): the units, the division, and whole tensors again."""
