"""GPU monitor: counters read through NVML, gpu.csv, summary, advice and plot."""
