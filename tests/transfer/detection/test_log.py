"""The log of a run: every line once and without colours, whoever else writes to its file.

It is of `transfer/detection/run.py`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import logging, sys
from detectron2.config import get_cfg
from transfer.detection.run import set_up
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
cfg = get_cfg()
cfg.OUTPUT_DIR = sys.argv[1]
set_up(cfg)
logging.getLogger("transfer.detection.run").info("of our own")
for name in ("detectron2.engine.hooks", "fvcore.common.checkpoint"):
    logging.getLogger(name).info("saved by %s", name)
    logging.getLogger(name).warning("a \\x1b[31mred\\x1b[0m word of %s", name)
"""


@pytest.mark.parametrize("into_the_log", [True, False])
def test_a_log_holds_every_line_once_and_no_colours(tmp_path: Path, into_the_log: bool) -> None:
    """Of a stage of the pipeline the output is the log; of a command it is somewhere else."""
    paths = [tmp_path / "log.txt", tmp_path / ("log.txt" if into_the_log else "output.txt")]
    with paths[1].open("ab") as output:
        subprocess.run(
            [sys.executable, "-c", RUN, str(tmp_path)], stdout=output, stderr=output, check=True
        )
    for path in paths:
        text = path.read_text("utf-8")
        assert "\x1b" not in text
        for name in ("detectron2.engine.hooks", "fvcore.common.checkpoint"):
            assert text.count(f"INFO {name}: saved by {name}\n") == 1
            assert text.count(f"WARNING {name}: a red word of {name}\n") == 1
        assert text.count("MIN_SIZE_TEST: ") == 1  # the config, which is shown in colours
    assert paths[1].read_text("utf-8").count("run: of our own\n") == 1
