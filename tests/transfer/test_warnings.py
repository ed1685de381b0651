"""Words of torch on torch.jit, when detectron2 is imported, reach nobody; other warnings do."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import warnings
import transfer.finetune
for kind in (FutureWarning, DeprecationWarning):
    warnings.warn(f"`torch.jit.script` is deprecated, a {kind.__name__}", kind)
    warnings.warn(f"`torch.jat` is deprecated, a {kind.__name__}", kind)
"""


@pytest.mark.parametrize("shown", ["default", "always"])
def test_torch_jit_is_not_told_of(shown: str) -> None:
    child = subprocess.run(
        [sys.executable, "-W", shown, "-c", CODE], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "torch.jit" not in child.stderr
    assert child.stderr.count("`torch.jat` is deprecated") == 2
