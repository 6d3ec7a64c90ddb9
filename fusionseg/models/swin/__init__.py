"""Swin UNETR and Swin Fusion UNETR."""
