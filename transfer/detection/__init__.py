"""One detector: its config, its training and evaluation, and the checks before."""

from transfer.detection.cfg import build_cfg
from transfer.detection.run import Run, run_detector

__all__ = ["Run", "build_cfg", "run_detector"]
