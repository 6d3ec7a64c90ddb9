"""The GPU monitor: NVML samples, gpu.csv, and their summary."""
