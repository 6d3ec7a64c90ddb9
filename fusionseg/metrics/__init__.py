"""Metrics of segmentations (overlap, surfaces, volumes) with their definitions, and of reconstructions (SSIM, PSNR).

May import: `config`, `data`.
"""
