"""The scripts in `tools/` as modules, to be called without a process."""

import importlib.util
from types import ModuleType

from tests.source import ROOT


def load_script(name: str) -> ModuleType:
    """Return `tools/<name>.py`, imported anew."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
