"""Processes, signals, random numbers, checkpoints and CPU threads of a run."""
