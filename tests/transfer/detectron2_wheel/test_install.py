"""The detectron2 that is there, and when installing is right, refused or undone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from transfer.detectron2_wheel import install, wheel
from transfer.detectron2_wheel.install import Installed

SITE = Path(install.sysconfig.get_path("purelib"))
WORKING = Installed("0.6+pure.1", str(SITE / "detectron2"), compiled=False, problem="")
COMPILED = Installed("0.6", str(SITE / "detectron2"), compiled=True, problem="")
HISTOGRAM = """
def print_instances_class_histogram(dataset_dicts, class_names):
    assert [len(item["annotations"]) for item in dataset_dicts] == [1]
"""


@pytest.fixture
def site(tmp_path):
    """Returns a folder with a stand-in detectron2 that `probe` finds first."""
    for name in ("detectron2", "detectron2/layers", "detectron2/modeling"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "detectron2/data").mkdir()
    (tmp_path / "detectron2/data/build.py").write_text(HISTOGRAM, encoding="utf-8")
    info = tmp_path / "detectron2-7.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: detectron2\nVersion: 7.5\n")
    return tmp_path


def test_probe_finds_version_place_and_the_lack_of_the_compiled_part(site):
    wanted = Installed("7.5", str(site / "detectron2"), compiled=False, problem="")
    assert install.probe(first=site) == wanted


def test_probe_takes_no_version_from_another_place(site):
    elsewhere = site / "elsewhere"
    elsewhere.mkdir()
    (site / "detectron2-7.5.dist-info").rename(elsewhere / "detectron2-7.5.dist-info")
    (site / "detectron2/__init__.py").write_text("__version__ = '1.2'", encoding="utf-8")
    found = install.probe(first=site)
    assert found is not None and found.version == "1.2"


def test_probe_finds_the_compiled_part(site):
    (site / "detectron2/_C.py").write_text("", encoding="utf-8")
    found = install.probe(first=site)
    assert found is not None and found.compiled
    assert str(found) == f"detectron2 7.5 at {site}/detectron2, with its C++ part"


@pytest.mark.parametrize("part", ["layers", "modeling"])
def test_probe_sees_a_broken_part(site, part):
    (site / "detectron2" / part / "__init__.py").write_text("import no_such\nname", "utf-8")
    found = install.probe(first=site)
    assert found is not None
    assert found.problem == "ModuleNotFoundError: No module named 'no_such'"


def test_probe_sees_a_v06_that_numpy_left_behind(site):
    text = f"import sys\n{HISTOGRAM}    sys.int_of_old\n"
    (site / "detectron2/data/build.py").write_text(text, encoding="utf-8")
    found = install.probe(first=site)
    assert found is not None
    assert found.problem == "AttributeError: module 'sys' has no attribute 'int_of_old'"


def test_probe_sees_the_rest_of_an_interrupted_install(site):
    (site / "detectron2/layers/__init__.py").unlink()
    (site / "detectron2/layers").rmdir()
    found = install.probe(first=site)
    assert found is not None
    assert found.problem == "ModuleNotFoundError: No module named 'detectron2.layers'"


def test_probe_survives_an_import_that_kills_the_process(site):
    (site / "detectron2/__init__.py").write_text("import os\nos._exit(3)\n", encoding="utf-8")
    found = install.probe(first=site)
    assert found is not None and found.problem == "the import ended with exit status 3"


def test_probe_finds_nothing_where_nothing_is(monkeypatch):
    nothing = subprocess.CompletedProcess([], 0, stdout="noise\nnull\n", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: nothing)
    assert install.probe() is None


@pytest.mark.parametrize(
    ("found", "force", "wanted"),
    [
        (None, False, True),
        (WORKING, False, False),
        (WORKING, True, True),
        (COMPILED, False, False),
        (WORKING._replace(problem="ImportError: x"), False, True),
        (WORKING._replace(version="", problem="ImportError: x"), False, True),
    ],
)
def test_must_install(found, force, wanted):
    assert install.must_install(found, force=force) is wanted


@pytest.mark.parametrize(
    ("found", "force", "message"),
    [
        (COMPILED, True, "not the pure-Python build that --force makes anew"),
        (COMPILED._replace(problem="ImportError: x.so"), False, r"not work: ImportError: x\.so"),
        (COMPILED._replace(problem="ImportError: x.so"), True, "repair it, or remove it"),
        (WORKING._replace(location="/src/detectron2", problem="E"), False, "/src/detectron2"),
    ],
)
def test_must_install_leaves_what_is_not_ours(found, force, message):
    with pytest.raises(ValueError, match=message):
        install.must_install(found, force=force)


def test_unmet_requirements_compare_release_numbers(monkeypatch):
    wanted = {"here": "2.10", "local": "2.14", "older": "1.10", "gone": "3.0", "post": "0.1.5"}
    there = {
        "here": "2.10.0",
        "local": "2.14+cu130",
        "older": "1.9.3",
        "post": "0.1.5.post20221221",
    }

    def version(name: str) -> str:
        if name not in there:
            raise install.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(install, "REQUIRES", wanted)
    monkeypatch.setattr(install.metadata, "version", version)
    assert install.unmet_requirements() == [
        "older>=1.10 (found 1.9.3)",
        "gone>=3.0 (found none)",
    ]


def test_download_needs_torch_and_asks_pip_for_the_checksum(tmp_path, monkeypatch):
    monkeypatch.setattr(install.util, "find_spec", lambda name: name != "torch" or None)
    with pytest.raises(ValueError, match="no torch; install it first"):
        install.download_archive(tmp_path)

    def pip(*arguments: str) -> None:
        wanted = Path(arguments[arguments.index("--requirement") + 1]).read_text(encoding="utf-8")
        assert wanted == (
            "pb1-detectron2==0.6 --hash=sha256:"
            "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29\n"
        )
        (tmp_path / "pb1-detectron2-0.6.tar.gz").write_bytes(b"")

    monkeypatch.setattr(install.util, "find_spec", lambda name: name)
    monkeypatch.setattr(install, "run_pip", pip)
    assert install.download_archive(tmp_path) == tmp_path / "pb1-detectron2-0.6.tar.gz"


def test_run_pip_reports_the_last_error_line():
    with pytest.raises(ValueError, match=r"^pip install failed: .*no-such-file"):
        install.run_pip("install", "--no-index", "./no-such-file.whl")


@pytest.mark.parametrize("error", [ValueError("pip failed"), KeyboardInterrupt()])
def test_install_wheel_undoes_what_pip_left(tmp_path, monkeypatch, error):
    wheel, purelib = tmp_path / "x.whl", tmp_path / "site"
    trial = Installed("0.6+pure.1", f"{wheel}/detectron2", compiled=False, problem="")
    monkeypatch.setattr(install, "probe", lambda first: trial)
    monkeypatch.setattr(install.sysconfig, "get_path", lambda _: str(purelib))

    def pip(*_: str) -> None:
        for name in ("detectron2/layers", "detectron2-0.6+pure.1.dist-info", "other"):
            (purelib / name).mkdir(parents=True)
        raise error

    monkeypatch.setattr(install, "run_pip", pip)
    with pytest.raises(type(error)):
        install.install_wheel(wheel)
    assert [path.name for path in purelib.iterdir()] == ["other"]


def test_install_wheel_tries_an_import_before_it_installs(tmp_path, monkeypatch):
    init = {"detectron2/__init__.py": b"import no_such", "LICENSE": b""}
    broken = wheel.write_wheel(init, tmp_path)
    called: list[str] = []
    monkeypatch.setattr(install, "run_pip", lambda *_: called.append("pip"))
    with pytest.raises(ValueError, match=r"\.whl: not installed, .* No module named 'no_such'"):
        install.install_wheel(broken)
    assert called == []


def test_modules_import_nothing_but_the_standard_library():
    names = [f"transfer.detectron2_wheel.{name}" for name in ("install", "wheel", "edits")]
    script = f"import sys, json, {', '.join(names)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    tops = {name.partition(".")[0] for name in json.loads(done.stdout)}
    foreign = {"torch", "torchvision", "numpy", "detectron2", "packaging", "pip", "setuptools"}
    assert foreign & tops == set()
