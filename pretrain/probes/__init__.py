"""Classification by a frozen encoder: k nearest neighbours and linear classifiers."""

from pretrain.probes.kept import probe_kept_states
from pretrain.probes.online import TrainingProbe
from pretrain.probes.probe import open_backbone, probe_and_write, run_probe

__all__ = ["TrainingProbe", "open_backbone", "probe_and_write", "probe_kept_states", "run_probe"]
