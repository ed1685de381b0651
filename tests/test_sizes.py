"""Sizes that keep the house readable, and a test file for every module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pretrain", "transfer", "pipeline")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
MODULES = [path for path in FILES if path.name != "__init__.py"]
MAX_MODULES, MAX_FILE, MAX_FUNCTION = 14, 500, 60


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES}), ids=str)
def test_a_folder_can_be_read_at_a_glance(folder: Path) -> None:
    modules = [path for path in MODULES if path.parent == folder]
    assert len(modules) <= MAX_MODULES, f"{folder}: {len(modules)} modules"


def test_files_and_functions_keep_to_their_sizes() -> None:
    wrong = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > MAX_FILE:
            wrong.append(f"{path}: {lines} lines, wanted at most {MAX_FILE}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION:
                    wrong.append(f"{path}:{node.lineno} {node.name}: {lines} lines")
    assert not wrong, "\n".join(wrong)


def test_every_module_has_a_test_file_of_its_name_or_says_where_it_is_tested() -> None:
    wrong = []
    for path in MODULES:
        mirror = ROOT / "tests" / path.relative_to(ROOT).parent / f"test_{path.name}"
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        _, said, where = docstring.partition("Tested in ")
        named = [word.strip("`,.;()") + ".py" for word in where.replace(".py", "").split()]
        if not mirror.exists() and not any((ROOT / name).exists() for name in named if said):
            wrong.append(f"{path.relative_to(ROOT)}: no {mirror.relative_to(ROOT)}")
    assert not wrong, "\n".join(wrong)
