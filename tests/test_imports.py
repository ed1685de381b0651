"""The one-way rules of imports: between packages, and between the folders of each package."""

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.source import ROOT, import_graph, imports_of, modules_in

TORCH_FREE = {
    "pretrain.config.base",
    "pretrain.config.data",
    "pretrain.config.loss",
    "pretrain.config.pretrain",
    "pretrain.config.probe",
    "pretrain.data.splits",
    "pretrain.runtime.bars",
    "transfer.checkpoints.other_files",
    "transfer.config.convert",
    "transfer.config.data",
    "transfer.config.finetune",
    "transfer.config.recipe",
    "transfer.files",
}
FORBIDDEN = {
    "pretrain": {"transfer", "pipeline", "detectron2", "submitit"},
    "transfer": {"pretrain", "pipeline", "submitit"},
    "pipeline": {"torch", "torchvision", "detectron2", "tools"},
}
# From the bottom to the top: a folder imports only what stands before it. The files at the top of a
# package are above its folders; those in BOTTOM are below them.
FOLDERS = {
    "pretrain": (
        "config", "runtime", "data", "views", "models", "whitening", "losses", "methods",
        "training", "probes",
    ),
    "transfer": ("detectron2_wheel", "config", "checkpoints", "hub", "datasets", "detection"),
    "pipeline": (
        "stages", "config", "tracking", "downloads", "plan", "report", "executors",
        "executors.slurm", "commands",
    ),
}  # fmt: skip
BOTTOM = {"pretrain.indicators", "transfer.files", "transfer.resnet", "pipeline.stages.files"}


MODULES = modules_in(ROOT, *FORBIDDEN)


def folder_of(module: str) -> str:
    """The folder below the package, empty for files at its top."""
    if MODULES[module].name == "__init__.py":
        return module.partition(".")[2]
    return module.partition(".")[2].rpartition(".")[0]


def height(module: str) -> int:
    folders = FOLDERS[module.partition(".")[0]]
    if module in BOTTOM:
        return -1
    return folders.index(folder) if (folder := folder_of(module)) else len(folders)


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_package_imports_only_what_the_layout_allows(package: str) -> None:
    files = [path for name, path in MODULES.items() if name.partition(".")[0] == package]
    assert len(files) > 20
    for path in files:
        for name in imports_of(path, MODULES):
            assert name.partition(".")[0] not in FORBIDDEN[package], f"{path} imports {name}"


@pytest.mark.parametrize("package", sorted(FOLDERS))
def test_a_folder_imports_only_what_stands_below_it(package: str) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in imports_of(path, MODULES) & MODULES.keys()
        if module.partition(".")[0] == package == name.partition(".")[0] and name != package
        and folder_of(name) != folder_of(module) and height(name) >= height(module)
    ]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_every_folder_has_its_place_in_the_order() -> None:
    for module in MODULES:
        package = module.partition(".")[0]
        assert folder_of(module) in ("", *FOLDERS[package]), module


def circle(modules: dict[str, Path]) -> str:
    """Return the modules of a circle of imports, or nothing; a folder's `__init__` is one too."""
    try:
        tuple(TopologicalSorter(import_graph(modules)).static_order())
    except CycleError as error:
        return " -> ".join(error.args[1])
    return ""


def test_no_circle_among_files() -> None:
    assert circle(MODULES) == ""


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ""),
        ({"top": "import p.low, p.low.b"}, ""),
        ({"low/a": "from p.low import b", "low/b": "import p.low.a"}, "p.low.a p.low.b"),
        ({"low/b": "from p.low import a_value"}, "p.low p.low.b"),
        ({"low/b": "def later():\n    import p.low"}, "p.low p.low.b"),
        ({"low/a": "import p.high.c"}, "p.high.c p.low"),
        ({"low/d": "import p.low"}, "p.low p.low.d"),
    ],
)
def test_circles_through_the_face_of_a_folder_are_seen(
    tmp_path: Path, files: dict[str, str], expected: str
) -> None:
    """A face imports its own modules; no module imports its own face, nor one above it."""
    sound = {
        "__init__": "",
        "low/__init__": "from p.low import a, b",
        "low/a": "",
        "low/b": "import p.low.a",
        "high/__init__": "",
        "high/c": "from p.low import a_value",
    }
    for name, text in (sound | files).items():
        path = tmp_path / "p" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    seen = circle(modules_in(tmp_path, "p")).split(" -> ")
    assert set(expected.split(" ")) <= set(seen) and (seen == [""]) is (expected == "")


def test_pipeline_takes_only_config_classes_from_the_stages() -> None:
    for module, path in MODULES.items():
        for name in imports_of(path, MODULES) if module.startswith("pipeline") else ():
            if name.partition(".")[0] in ("pretrain", "transfer"):
                assert name in TORCH_FREE, f"{path} imports {name}"


def test_what_the_pipeline_takes_from_the_stages_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['detectron2'] = None\n"
        f"import {', '.join(sorted(TORCH_FREE))}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_detectron2_is_imported_only_in_transfer() -> None:
    for module, path in MODULES.items():
        if not module.startswith("transfer"):
            assert not any(name.startswith("detectron2") for name in imports_of(path, MODULES)), (
                path
            )


def test_benchmarks_and_examples_are_imported_by_no_package() -> None:
    for path in MODULES.values():
        for name in imports_of(path, MODULES):
            assert name.partition(".")[0] not in ("benchmarks", "examples", "tools"), path


def test_plan_and_report_work_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['detectron2'] = None\n"
        "import pipeline.commands.local, pipeline.report.write, pipeline.worker"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_plan_imports_no_plots_and_no_statistics() -> None:
    code = (
        "import sys, pipeline.commands.main, pipeline.commands.local\n"
        "slow = {'matplotlib', 'scipy', 'torch', 'submitit'} & sys.modules.keys()\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
