"""The plan on a SLURM cluster, through submitit."""
