"""Sizes that keep the house readable, and a test file for every module."""

import ast
import re
from pathlib import Path

import pytest

from tests.source import ROOT, imports_of, modules_in

PACKAGES = ("pretrain", "transfer", "pipeline")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
MODULES = [path for path in FILES if path.name != "__init__.py"]
SOURCES = modules_in(ROOT, *PACKAGES, "benchmarks", "examples")
SHARED = modules_in(ROOT, "tests")
TESTED = {name: path for name, path in SOURCES.items() if path.name != "__init__.py"}
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


def test_the_first_line_of_every_module_is_a_statement_of_what_is_in_it() -> None:
    paths = [*SOURCES.values(), *SHARED.values(), *modules_in(ROOT, "tools").values()]
    wrong = []
    for path in paths:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "none"
        line = docstring.splitlines()[0]
        if re.match(r"(none$|what|whether|how|which|where|why|when|who)\b|.*\?", line, re.I):
            wrong.append(f"{path.relative_to(ROOT)}: {line}")
    assert not wrong, "\n".join(wrong)


def test_every_module_has_a_test_file_that_imports_or_runs_it() -> None:
    """It has the module's name, or the docstring of the module or its folder says `Tested in`."""
    wrong = []
    for module, path in sorted(TESTED.items()):
        where = path.relative_to(ROOT)
        mirror = ROOT / "tests" / where.parent / f"test_{path.name}"
        tests = [mirror] if mirror.exists() else []
        tests += said_to_test(path)
        tests = tests or said_to_test(path.with_name("__init__.py"))
        if not tests:
            wrong.append(f"{where}: no {mirror.relative_to(ROOT)}, and not said where it is tested")
        for test in tests:
            if not test.exists():
                wrong.append(f"{where}: tested in {test.relative_to(ROOT)}, which is not there")
            elif not uses(test, module):
                wrong.append(f"{where}: {test.relative_to(ROOT)} neither imports nor runs it")
    assert not wrong, "\n".join(wrong)


def said_to_test(path: Path) -> list[Path]:
    """Return the test files that a module's docstring names after `Tested in`."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    said = docstring.partition("Tested in ")[2]
    return [ROOT / name for name in re.findall(r"tests/[\w/]+\.py", said)]


def uses(test: Path, module: str) -> bool:
    """Return whether a test imports a module or names it in a string.

    It may import it through its folder's face, or through what the tests share.
    """
    names = imports_of(test, SOURCES | SHARED)
    if module in names or any(uses(SHARED[name], module) for name in names & SHARED.keys()):
        return True
    texts = []
    for node in ast.walk(ast.parse(test.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in names & SOURCES.keys():
            face = names_of(SOURCES[node.module])
            texts += [face.get(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    program = re.escape(module.removesuffix(".__main__"))
    named = re.compile(rf"(?<![\w.]){program}(?![\w])")
    return any(map(named.search, texts))


def names_of(face: Path) -> dict[str, str]:
    """Return the module of each name that a folder's face gives out."""
    tree = ast.parse(face.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("import pretrain.whitening.functional", True),
        ("from pretrain.whitening import functional", True),
        ("from pretrain.whitening import whiten", True),  # through the face
        ("RUN = 'python -m pretrain.whitening.functional'", True),
        ("from pretrain.whitening import inverse_sqrt", False),
        ("from pretrain.losses import WMSELoss  # it uses the module", False),
        ("from pretrain.whitening.functional_of_another_kind import x", False),
    ],
)
def test_a_neighbour_is_no_test_of_a_module(tmp_path: Path, text: str, used: bool) -> None:
    test = tmp_path / "test_x.py"
    test.write_text(text, encoding="utf-8")
    assert uses(test, "pretrain.whitening.functional") is used
