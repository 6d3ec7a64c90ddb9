"""nnU-Net's residual-encoder U-Net (Isensee et al., 2024, arXiv:2404.09556): blocks, network, variants."""
