"""Many runs at once: sweeps, their submission to SLURM or to this machine, and where they stand."""
