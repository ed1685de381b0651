"""Running a plan: on this machine, or on a SLURM cluster."""
