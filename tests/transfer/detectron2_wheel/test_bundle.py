"""Bundles from a folder of stub packages: which wheels, and that only a whole one has the name."""

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.scripts import load_script
from tests.source import ROOT
from transfer.detectron2_wheel import bundle
from transfer.detectron2_wheel.bundle import Target, make_bundle, requirements

ARM = Target("3.12", "manylinux_2_28_aarch64")
PROJECT = """[build-system]
requires = ["setuptools>=77"]
[project]
dependencies = ["torch>=2", "Torchvision>=0.2", "numpy>=1", "fvcore>=0.1", "omegaconf>=2"]
[project.optional-dependencies]
dev = ["pytest>=8"]
vision = ["timm"]
"""
PINS = "torch==2.1\nnumpy==2.0\n"
CUDA = "nvidia-cuda>=1; platform_machine == 'x86_64'"
SETUP = "from setuptools import setup\nsetup(name='antlr4', version='4.9', py_modules=[])\n"


def write_wheel(folder: Path, name: str, version: str, tag: str, *needs: str) -> None:
    info = f"{name}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    lines = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", head + lines)
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, and an index of stubs: wheels for other machines, a package as source alone."""
    index, here = tmp_path / "index", f"cp3{sys.version_info.minor}"
    index.mkdir()
    for version in ("2.0", "2.1", "2.2"):
        write_wheel(index, "torch", version, "cp312-cp312-manylinux_2_28_aarch64", CUDA, "old")
    write_wheel(index, "torchvision", "0.3", "cp312-cp312-manylinux2014_aarch64", "torch>=2")
    for tag in ("cp312-cp312-manylinux_2_17_aarch64", "cp312-cp312-manylinux_2_34_aarch64"):
        write_wheel(index, "numpy", "2.0", tag)
    write_wheel(index, "numpy", "2.0", f"{here}-{here}-linux_x86_64")
    needs = ("antlr4", 'new>=1; python_version >= "3.12"', 'back; python_version < "3.12"')
    write_wheel(index, "omegaconf", "2.1", "py3-none-any", *needs)
    for name in ("new", "back", "old"):
        write_wheel(index, name, "1.0", "py3-none-any")
    for name, version in (("fvcore", "0.2"), ("setuptools", "81.0"), ("pytest", "9.0")):
        write_wheel(index, name, version, "py3-none-any")
    write_wheel(index, "timm", "1.0", "py3-none-any", "torch")
    with tarfile.open(index / "antlr4-4.9.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("antlr4-4.9/setup.py")
        entry.size = len(SETUP)
        archive.addfile(entry, io.BytesIO(SETUP.encode()))
    for name in ("PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    settings = {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    def built(archive: Path, folder: Path) -> None:
        write_wheel(folder, "detectron2", "0.6", "py3-none-any", "torch>=2", "omegaconf")

    monkeypatch.setattr(bundle, "download_archive", lambda folder: folder / "detectron2.tar.gz")
    monkeypatch.setattr(bundle, "build_wheel", built)
    (tmp_path / "pyproject.toml").write_text(PROJECT, "utf-8")
    (tmp_path / "constraints.txt").write_text(PINS, "utf-8")
    return tmp_path


def wheels(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.whl"))


def test_every_wheel_for_another_machine_and_python_is_there(project: Path) -> None:
    folder = project / "bundle"
    (project / ".bundle.partial").mkdir()  # a bundle that was killed
    (project / ".bundle.partial" / "numpy-1.0-py3-none-any.whl").touch()
    told = make_bundle(project, folder, ARM).splitlines()
    assert wheels(folder) == [
        "antlr4-4.9-py3-none-any.whl",
        "detectron2-0.6-py3-none-any.whl",
        "fvcore-0.2-py3-none-any.whl",
        "new-1.0-py3-none-any.whl",
        "numpy-2.0-cp312-cp312-manylinux_2_17_aarch64.whl",
        "old-1.0-py3-none-any.whl",
        "omegaconf-2.1-py3-none-any.whl",
        "setuptools-81.0-py3-none-any.whl",
        "torch-2.1-cp312-cp312-manylinux_2_28_aarch64.whl",
        "torchvision-0.3-cp312-cp312-manylinux2014_aarch64.whl",
    ]
    assert len(told) == 11 and told[-1].endswith(f" MB  {folder}: 10 wheels")
    sums = (folder / "SHA256SUMS").read_text("ascii").splitlines()
    digest = hashlib.sha256((folder / wheels(folder)[0]).read_bytes()).hexdigest()
    assert len(sums) == 10 and sums[0] == f"{digest}  antlr4-4.9-py3-none-any.whl"
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=True)
    steps = (folder / "README.txt").read_text("utf-8").splitlines()[3:5]
    assert [step.strip() for step in steps] == [
        "python3.12 -m venv .venv && . .venv/bin/activate",
        "python -m pip install --no-index --find-links bundle -e . detectron2",
    ]
    assert steps[1].strip() in (ROOT / "README.md").read_text("utf-8")
    assert not [path for path in project.iterdir() if path.name.startswith(".bundle")]


def test_without_torch_nothing_is_there_that_only_torch_needs(project: Path) -> None:
    make_bundle(project, project / "b", ARM, with_torch=False, extras=["dev"])
    names = {name.partition("-")[0] for name in wheels(project / "b")}
    assert {"pytest", "detectron2", "setuptools"} < names
    assert not names & {"torch", "torchvision", "old", "nvidia_cuda"}
    text = (project / "b" / "README.txt").read_text("utf-8")
    assert "without torch" in text and "-m venv" not in text
    with pytest.raises(ValueError, match="an extra needs torch, which the bundle is to be without"):
        make_bundle(project, project / "c", ARM, with_torch=False, extras=["vision"])


def test_what_fails_or_is_interrupted_leaves_the_earlier_bundle(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project / "bundle"
    folder.mkdir()
    for name in ("SHA256SUMS", "numpy-1.0-py3-none-any.whl"):
        (folder / name).touch()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (project / "constraints.txt").write_text("numpy==3.0", "utf-8")
    words = r"^Python 3\.12, manylinux_2_28_aarch64: pip download failed: Cannot install .*numpy"
    with pytest.raises(ValueError, match=words):
        make_bundle(project, folder, ARM)
    folder.rename(project / ".bundle.old")  # killed while it changed the names
    run_pip = bundle.run_pip

    def interrupted(*arguments: str, **how: tuple[str, ...]) -> None:
        run_pip(*arguments, **how)
        if arguments[0] == "download":
            raise KeyboardInterrupt

    (project / "constraints.txt").write_text(PINS, "utf-8")
    monkeypatch.setattr(bundle, "run_pip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_bundle(project, folder, ARM)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not [path for path in project.iterdir() if path.name.startswith(".bundle")]


def test_a_package_that_a_wheel_needs_and_the_bundle_lacks_is_a_fault(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(archive: Path, folder: Path) -> None:
        write_wheel(folder, "detectron2", "0.6", "py3-none-any", "yacs")

    monkeypatch.setattr(bundle, "build_wheel", built)
    with pytest.raises(ValueError, match=r"pip install failed: No matching distribution .* yacs"):
        make_bundle(project, project / "bundle", ARM)
    assert not (project / "bundle").exists()


def test_a_folder_that_is_no_bundle_is_left_alone(project: Path) -> None:
    (project / "mine").mkdir()
    with pytest.raises(ValueError, match="mine: is there and is no bundle; name another folder"):
        make_bundle(project, project / "mine", ARM)
    assert (project / "mine").is_dir()


@pytest.mark.parametrize(
    ("python", "platform", "words"),
    [
        ("3.10", ARM.platform, "Python 3.10: wanted 3.11 or newer"),
        ("3.12.1", ARM.platform, "Python 3.12.1: wanted"),
        ("cp312", ARM.platform, "Python cp312: wanted"),
        ("3.12", "linux_x86_64", "platform linux_x86_64: wanted manylinux_2_<glibc>_x86_64"),
        ("3.12", "manylinux_2_28_riscv64", "wanted manylinux_2_<glibc>"),
        ("3.12", "manylinux_2_99999999_x86_64", "wanted manylinux_2_<glibc>"),
        ("3.120", "manylinux_2_28_x86_64", "Python 3.120: wanted"),
    ],
)
def test_targets_that_no_wheel_is_for(python: str, platform: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Target(python, platform)


def test_older_platforms_are_taken_and_newer_ones_not() -> None:
    options = Target("3.11", "manylinux_2_17_x86_64").options()
    platforms = [word.partition("=")[2] for word in options if word.startswith("--platform")]
    assert platforms[0] == "manylinux_2_17_x86_64" and "manylinux_2_18_x86_64" not in platforms
    assert {"manylinux2014_x86_64", "manylinux1_x86_64", "linux_x86_64"} < {*platforms}


def test_an_extra_is_one_of_the_project(project: Path) -> None:
    with pytest.raises(ValueError, match="extra tests, x: unknown; known: dev, vision"):
        requirements(project, ["tests", "dev", "x"], with_torch=True)


def test_the_command_ends_with_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tool = load_script("make_bundle")
    assert tool.main(["--python", "3.9"]) == 2
    assert capsys.readouterr().err == (
        "make_bundle: Python 3.9: wanted 3.11 or newer, such as 3.12\n"
    )
    assert tool.main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"make_bundle: {tmp_path}: is there and is no bundle")
