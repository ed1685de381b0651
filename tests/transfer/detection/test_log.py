"""The log of a run: every line once and without colours, whoever else writes to its file.

It is of `transfer/detection/run.py`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import logging, os, sys
from detectron2.config import get_cfg
from transfer.detection.run import set_up
if os.fork():  # the second run is another process too, and imports nothing again
    del sys.argv[1:3]
    status = os.wait()[1]
else:
    status = 0
output = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.dup2(output, 1)
os.dup2(output, 2)
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
cfg = get_cfg()
cfg.OUTPUT_DIR = sys.argv[1]
set_up(cfg)
logging.getLogger("transfer.detection.run").info("of our own")
for name in ("detectron2.engine.hooks", "fvcore.common.checkpoint"):
    logging.getLogger(name).info("saved by %s", name)
    logging.getLogger(name).warning("a \\x1b[31mred\\x1b[0m word of %s", name)
sys.exit(status != 0)
"""


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, list[Path]]:
    """Return log and output of a run whose output is the log, and of one whose is not."""
    stage, command = (tmp_path_factory.mktemp(name) for name in ("stage", "command"))
    paths = {True: [stage / "log.txt"] * 2, False: [command / "log.txt", command / "output.txt"]}
    words = [str(word) for log, output in paths.values() for word in (log.parent, output)]
    subprocess.run([sys.executable, "-c", RUN, *words], check=True)
    return paths


@pytest.mark.parametrize("into_the_log", [True, False])
def test_a_log_holds_every_line_once_and_no_colours(
    logs: dict[bool, list[Path]], into_the_log: bool
) -> None:
    """Of a stage of the pipeline the output is the log; of a command it is somewhere else."""
    paths = logs[into_the_log]
    for path in paths:
        text = path.read_text("utf-8")
        assert "\x1b" not in text
        for name in ("detectron2.engine.hooks", "fvcore.common.checkpoint"):
            assert text.count(f"INFO {name}: saved by {name}\n") == 1
            assert text.count(f"WARNING {name}: a red word of {name}\n") == 1
        assert text.count("MIN_SIZE_TEST: ") == 1  # the config, which is shown in colours
    assert paths[1].read_text("utf-8").count("run: of our own\n") == 1
