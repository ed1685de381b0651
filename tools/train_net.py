"""Fine-tune or evaluate one detector with detectron2's own command line.

Without a GPU it runs on the CPU. Fewer GPUs than SOLVER.REFERENCE_WORLD_SIZE mean a smaller batch
and learning rate and more iterations; the values used are printed and kept in OUTPUT_DIR.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config.yaml_files import load_yaml
from transfer.detection.cli import main

if __name__ == "__main__":
    sys.exit(main(__doc__, load=lambda path: load_yaml(Path(path))))
