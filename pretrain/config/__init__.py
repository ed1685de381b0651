"""Settings of pretraining, losses and probes; imports no torch."""
