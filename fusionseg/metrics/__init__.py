"""Metrics of segmentations (Dice, HD95) and of masked reconstructions (SSIM, PSNR).

May import: `config`, `data`.
"""
