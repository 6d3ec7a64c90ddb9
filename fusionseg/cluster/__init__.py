"""Many runs: sweeps, cluster profiles, submission to SLURM or to this machine, status, doctor.

May import: `utils`, `config`, `data`, `distributed`, `runs`, `training`.
"""
