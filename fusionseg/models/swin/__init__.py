"""Swin UNETR and Swin Fusion UNETR: encoder, fused skip connections, context bridge."""
