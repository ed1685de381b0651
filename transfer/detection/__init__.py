"""One detector: its config, training, and what stands around it."""
