"""The one-way rule of imports: tools -> {pipeline, pretrain, transfer}."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCH_FREE = {
    "pretrain.config.pretrain",
    "pretrain.data.splits",
    "pretrain.data.file_index",
    "pretrain.config.loss",
    "pretrain.config.probe",
    "transfer.config.stages",
}
FORBIDDEN = {
    "pretrain": {"transfer", "pipeline", "detectron2", "submitit"},
    "transfer": {"pretrain", "pipeline", "submitit"},
    "pipeline": {"torch", "torchvision", "detectron2", "tools"},
}


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_package_imports_only_what_the_layout_allows(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 3
    for path in files:
        for name in imported_modules(path):
            assert name.partition(".")[0] not in FORBIDDEN[package], f"{path} imports {name}"


def test_pipeline_takes_only_config_classes_from_the_stages() -> None:
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        for name in imported_modules(path):
            if name.partition(".")[0] in ("pretrain", "transfer"):
                assert name in TORCH_FREE, f"{path} imports {name}"


def test_detectron2_is_imported_only_in_transfer() -> None:
    for path in sorted(ROOT.glob("p*/**/*.py")):
        assert not any(name.startswith("detectron2") for name in imported_modules(path)), path


def test_plan_and_report_work_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['detectron2'] = None\n"
        "import pipeline.commands.local, pipeline.report.write, pipeline.worker"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
