"""The resources of a sweep's runs: profiles that differ from run to run, and job arrays within SLURM's limits."""
