"""U-Net, residual U-Net and attention U-Net, in 3D or over 2D slices."""
