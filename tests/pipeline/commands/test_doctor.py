"""The doctor's findings on a machine that commands and folders stand in for."""

import json
import stat
import tomllib
from pathlib import Path

import pytest

from pipeline.commands import doctor
from pipeline.commands.doctor import Finding

ROOT = Path(__file__).resolve().parents[3]
GOOD = Finding("detectron2", "ok", "0.6", required=True)


def command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def declared(*extras: str) -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][name] for name in extras)]
    parts = [text.partition(">=") for texts in lists for text in texts]
    return {name.lower(): bound for name, _, bound in parts}


def test_conda_environment_has_the_bounds_of_the_project() -> None:
    names = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    bounds = {
        names.get(name, name): bound
        for name, bound in declared("dev", "docs", "hub", "jpeg", "peers").items()
    }
    text = (ROOT / "environment.yml").read_text("utf-8").partition("dependencies:")[2]
    parts = [line.split("#")[0].strip(" -").partition(">=") for line in text.splitlines()]
    there = {name: bound for name, _, bound in parts if name}
    others = {"python": "3.11", "detectron2=0.6": "", "make": "", "pip": ""}
    assert there == bounds | others
    assert doctor.MIN_PYTHON == (3, 11)


def test_readme_has_the_bounds_of_torch_and_numpy() -> None:
    words = " ".join((ROOT / "README.md").read_text("utf-8").split())
    lowest = doctor.REQUIRED
    assert (
        f"torch {lowest['torch']}, torchvision {lowest['torchvision']} "
        f"and numpy {lowest['numpy']}, or newer" in words
    )


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("2.5.9+cu121", "torch 2.5.9+cu121 instead of 2.6 or newer"),
        ("2.6.0+cu124", "all 1 are installed"),
        ("2.10.0a0+git", "all 1 are installed"),
    ],
)
def test_packages_that_are_too_old(
    version: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", {"torch": "2.6"})
    monkeypatch.setattr(doctor, "version_of", lambda name: version)
    assert doctor.packages().text == text


def install(folder: Path, **versions: str) -> Path:
    for name, version in versions.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(text, encoding="utf-8")
    return folder


def test_what_an_environment_takes_from_the_one_below_and_what_it_hides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = install(tmp_path / "module" / "site", torch="2.9", torchvision="0.24", numpy="2.0")
    above = install(tmp_path / "env" / "site", pillow="11")
    monkeypatch.setattr(doctor, "REQUIRED", dict.fromkeys(["torch", "numpy", "pillow", "no-such"]))
    monkeypatch.setattr(doctor.sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setattr(doctor.sys, "path", [str(above), str(below), str(above), str(below)])
    finding = doctor.environment()
    assert (finding.status, finding.text) == ("ok", f"{tmp_path}/env; torch, numpy of {below}")
    install(above, torch="2.14.1", numpy="2.0")
    finding = doctor.environment()
    assert (finding.status, finding.required) == ("absent", False)
    assert finding.text == (
        f"{tmp_path}/env; torch 2.14.1 hides 2.9 of {below}, numpy 2.0 hides 2.0 of {below}"
    )
    assert finding.remedy.startswith("to have the hidden ones again: python -m pip uninstall")


def test_required_packages_are_those_of_the_project() -> None:
    for_detectron2 = {"omegaconf", "yacs", "tabulate", "termcolor", "cloudpickle"}
    bounds = {name: bound for name, bound in declared().items() if name not in for_detectron2}
    assert {name.lower(): bound for name, bound in doctor.REQUIRED.items()} == bounds


def test_without_a_cluster(bin_dir: Path) -> None:
    assert (doctor.slurm().status, doctor.accounting().status) == ("absent", "absent")
    assert doctor.slurm().remedy


def test_partitions_of_a_cluster(bin_dir: Path) -> None:
    command(bin_dir, "sbatch", "exit 1")
    command(bin_dir, "sinfo", "echo 'gpu* 12 up'; echo 'debug 1 down'")
    found = doctor.slurm()
    assert (found.status, found.text) == ("ok", "gpu* (12 nodes, up), debug (1 nodes, down)")


def test_a_cluster_that_does_not_answer(bin_dir: Path) -> None:
    command(bin_dir, "sbatch", "exit 0")
    command(bin_dir, "sinfo", "echo noise; echo 'slurm_load_partitions: refused' >&2; exit 1")
    found = doctor.slurm()
    assert (found.status, found.text) == (
        "broken",
        "sinfo failed: slurm_load_partitions: refused",
    )


def test_no_accounting_is_no_fault(bin_dir: Path) -> None:
    command(bin_dir, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    found = doctor.accounting()
    assert (found.status, found.required) == ("absent", False)
    assert found.text == "Slurm accounting storage is disabled"
    command(bin_dir, "sacct", "exit 0")
    assert doctor.accounting().status == "ok"


def test_data_sets_are_looked_for_below_the_root(tmp_path: Path) -> None:
    there = tmp_path / "VOC2007" / "ImageSets" / "Main"
    there.mkdir(parents=True)
    (there / "trainval.txt").write_text("000001\n", encoding="utf-8")
    found = {finding.name: finding for finding in doctor.datasets(tmp_path)}
    assert found["VOC 2007"].status == "ok" and not found["VOC 2007"].remedy
    assert found["COCO 2017"].status == "absent"
    assert str(tmp_path / "coco/annotations/instances_train2017.json") in found["COCO 2017"].text
    assert found["COCO 2017"].remedy == f"python tools/get_data.py coco2017 --to {tmp_path}"


def test_disk_is_judged_where_the_folder_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 3e9, "total": 9e9})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    found = doctor.disk(tmp_path / "not" / "yet")
    assert (found.status, found.text) == ("absent", f"3 GB free at {tmp_path}")
    usage.free = 300e9
    assert doctor.disk(tmp_path / "not" / "yet").status == "ok"


def test_little_shared_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       24000000 kB\n", encoding="ascii")
    usage = type("Usage", (), {"total": 67_108_864})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    found = doctor.memory(tmp_path / "meminfo", tmp_path)
    assert found.status == "absent" and "24 GB" in found.text and "0.07 GB" in found.text
    assert "--shm-size" in found.remedy


def test_broken_torch_is_told_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TORCH_PROBE", "raise RuntimeError('torchvision::nms is missing')")
    (found,) = doctor.torch_and_gpu()
    assert (found.status, found.required) == ("broken", True)
    assert found.text == "RuntimeError: torchvision::nms is missing"


def test_only_what_is_required_decides(tmp_path: Path) -> None:
    absent = Finding("GPU", "absent", "none", "do without")
    broken = Finding("torch", "broken", "no", "install it", required=True)
    assert doctor.healthy([GOOD, absent])
    assert not doctor.healthy([GOOD, broken])
    lines = doctor.table([GOOD, absent]).splitlines()
    assert lines[0] == "ok      detectron2  0.6"
    assert lines[2].endswith("-> do without")
    assert json.loads(doctor.as_json([absent]))[0]["remedy"] == "do without"


def test_missing_packages_end_the_examination_of_torch(
    tmp_path: Path, bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", {"torch": "2", "no-such-distribution": "1"})
    findings = doctor.examine(GOOD, datasets_root=tmp_path, output_dir=tmp_path)
    names = [finding.name for finding in findings]
    assert "torch" not in names and "GPU" not in names
    missing = next(finding for finding in findings if finding.name == "packages")
    assert missing.text == "missing: no-such-distribution" and not doctor.healthy(findings)
