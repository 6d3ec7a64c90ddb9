"""Metrics of segmentations (overlap, surfaces, volumes, lesions, vessels) and of reconstructions (SSIM, PSNR).

`definitions` has the definition of each.

May import: `config`, `data`, `utils`.
"""
