"""Faults that stop a run: said once, however many processes torchrun has started."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from pretrain.runtime.faults import tell_fault

ROOT = Path(__file__).resolve().parents[2]


def test_processes_that_share_a_store_say_the_same_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
    }
    for text in ("one", "one", "another's own", "one"):
        tell_fault(text, environment)
    assert capsys.readouterr().err.splitlines() == ["one", "another's own"]


def test_a_process_alone_speaks_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    tell_fault("one", {})
    tell_fault("one", {"WORLD_SIZE": "1"})
    assert capsys.readouterr().err.splitlines() == ["one", "one"]


# Both runs in one process of torchrun's, which imports torch once; it ends with the least code.
EACH = """
import json, runpy, sys
script, *commands = json.loads(sys.argv[1])
codes = []
for sys.argv[1:] in commands:
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        codes.append(end.code)
sys.exit(min(codes) if len(codes) == len(commands) else 0)
"""


@pytest.mark.slow
def test_torchrun_tells_each_reason_once(tmp_path: Path) -> None:
    reasons = {
        ("batch_size=64", "loss.sub_batch=64"): "pretrain: batch_size 64 over 2 processes is 32",
        ("batch_sizes=64",): "digits_cw_rgp.yaml: batch_sizes: ",
    }
    config = ROOT / "configs" / "pretrain" / "digits_cw_rgp.yaml"
    common = ["--config-file", str(config), "--output-dir", "out", "max_steps=3"]
    commands = [[*common, *change] for change in reasons]
    answer = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "--no-python", sys.executable, "-c", EACH,
            json.dumps([str(ROOT / "tools" / "pretrain.py"), *commands]),
        ],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert answer.returncode != 0, answer.stderr
    assert [answer.stderr.count(reason) for reason in reasons.values()] == [1, 1], answer.stderr
