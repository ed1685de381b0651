"""The packages that the check needs: all named, and told in one line before a part runs."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from benchmarks.gpu_check.needs import MACHINE, WHEELS, faults
from benchmarks.gpu_check.results import ROOT

OF_TESTS = {"pytest", "pytest-timeout", "pytest-xdist"}


def plain(name: str) -> str:
    return re.split(r"[<>=]", name)[0].replace("_", "-").lower()


def test_all_that_the_project_and_its_tests_need_is_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {plain(text) for text in project["dependencies"]} | OF_TESTS | {"detectron2"}
    providers = packages_distributions() | {"torch.utils.tensorboard": ["tensorboard"]}
    tried = [providers.get(name) or providers[name.split(".")[0]] for name in MACHINE + WHEELS]
    assert needed == {plain(names[0]) for names in tried}


def test_what_prepare_gathers_and_what_the_page_names() -> None:
    script = (ROOT / "benchmarks/gpu_check/prepare.sh").read_text(encoding="utf-8")
    page = (ROOT / "docs/gpu-check.md").read_text(encoding="utf-8")
    providers = packages_distributions() | {"torch.utils.tensorboard": ["tensorboard"]}
    for modules, text in ((WHEELS, script), (WHEELS + MACHINE, page)):
        for module in modules:
            names = providers.get(module) or providers[module.split(".")[0]]
            assert re.search(rf"\b{re.escape(plain(names[0]))}\b", text, re.IGNORECASE), names[0]


def test_what_is_absent_and_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_one.py").write_text("raise OSError('libcuda.so.1:\\nno such file')")
    (tmp_path / "needy_one.py").write_text("import absent_two")
    monkeypatch.syspath_prepend(tmp_path)
    assert faults(["json", "absent_one", "broken_one", "needy_one", "absent_one.part"]) == [
        "absent_one",
        "broken_one (libcuda.so.1: no such file)",
        "needy_one (No module named 'absent_two')",
        "absent_one.part",
    ]


def test_it_is_told_before_any_part_runs(tmp_path: Path) -> None:
    hidden = "import sys\nsys.modules.update(dict.fromkeys(('xdist', 'pydantic', 'jinja2')))\n"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    variables = {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(tmp_path),
        "GPU_CHECK_NO_INSTALL": "1",
        "GPU_CHECK_TINY": "1",
        "GPU_CHECK_WORK": str(tmp_path / "work"),
        "OUT": str(tmp_path / "out"),
    }
    done = subprocess.run(
        ["bash", "benchmarks/gpu_check/check.sh"],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    lacking = line.removeprefix(f"gpu-check: {sys.executable} lacks ").split("; ")[0]
    assert {name.split(" (")[0] for name in lacking.split(", ")} >= {"jinja2", "pydantic", "xdist"}
    assert "docs/gpu-check.md" in line and not (tmp_path / "out" / "results.json").exists()
