"""A working detectron2: looked for, and the pure-Python one installed where there is none.

Standard library only: it must run before torch or detectron2 can be imported.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

from transfer.detectron2_wheel.edits import REQUIRES
from transfer.detectron2_wheel.wheel import ARCHIVE_SHA256, DIST_INFO, PROJECT, VERSION, build_wheel

PROBE = """
import importlib.metadata, importlib.util, json, os
spec = importlib.util.find_spec("detectron2")
build = None
if spec:
    places = list(spec.submodule_search_locations or [])
    build = {"version": "", "location": places[0] if places else "?", "problem": ""}
    for dist in importlib.metadata.distributions(name="detectron2"):
        if os.path.realpath(str(dist.locate_file("detectron2"))) in map(os.path.realpath, places):
            build["version"] = dist.version
    try:
        import detectron2, detectron2.layers, detectron2.modeling, numpy
        for alias in (bool, int, float, str):  # as transfer.detection.loader gives them back
            if alias.__name__ not in vars(numpy):
                setattr(numpy, alias.__name__, alias)
        build["version"] = build["version"] or detectron2.__version__
        from detectron2.data.build import print_instances_class_histogram as count
        count([{"annotations": [{"category_id": 0}]}], ["one"])
    except BaseException as error:
        build["problem"] = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
    try:
        import detectron2._C
        build["compiled"] = True
    except BaseException:
        build["compiled"] = False
print(json.dumps(build))
"""


class Installed(NamedTuple):
    """A detectron2 that the interpreter finds; `problem` is empty when it works."""

    version: str  # empty when nothing states it
    location: str
    compiled: bool
    problem: str

    def __str__(self) -> str:
        """Return version, location and whether the C++ part is there."""
        part = "with" if self.compiled else "without"
        return f"detectron2 {self.version or '?'} at {self.location}, {part} its C++ part"


def probe(first: Path | None = None) -> Installed | None:
    """Return the detectron2 that a new process of this interpreter finds, None if there is none.

    It is imported there: this process stays clean, and a crash counts as a problem. So does a v0.6
    that imports but does not work with the numpy beside it even with the aliases that
    `transfer.detection.loader` gives back. `first` is searched before everything else.
    """
    env = dict(os.environ)
    if first:
        paths = [str(first), env.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-P", "-c", PROBE]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        problem = f"the import ended with exit status {done.returncode} {last}".strip()
        return Installed("", "?", compiled=False, problem=problem)
    build = json.loads(done.stdout.splitlines()[-1])
    return Installed(**build) if build else None


def unmet_requirements() -> list[str]:
    """Return what the wheel requires and this interpreter lacks, as `name>=version (found ..)`."""
    unmet = []
    for name, lowest in REQUIRES.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = ""
        if not version or _numbers(version) < _numbers(lowest):
            unmet.append(f"{name}>={lowest} (found {version or 'none'})")
    return unmet


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release numbers of a version: (2, 14, 1) for 2.14.1+cu130 and for 2.14.1rc1."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release.group().split(".")) if release else ()


def must_install(build: Installed | None, *, force: bool = False) -> bool:
    """Return whether to install, given what `probe` returned.

    Raises:
        ValueError: installing would replace, or be hidden by, a detectron2 that is not ours.
    """
    if build is None:
        return True
    if not build.problem and not force:
        return False
    home = {Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib")}
    ours = build.version in ("", VERSION)  # no version: the rest of an interrupted install
    if ours and Path(build.location).resolve().parent in home:
        return True
    if build.problem:
        raise ValueError(
            f"{build}, does not work: {build.problem}; repair it, or remove it with what "
            "installed it (conda remove, or python -m pip uninstall detectron2) and run this again"
        )
    raise ValueError(
        f"{build}, is not the pure-Python build that --force makes anew; remove it first "
        "(python -m pip uninstall detectron2)"
    )


def run_pip(*arguments: str, start: Sequence[str] = ("-m", "pip")) -> None:
    """Run this interpreter's pip quietly; `start` are the words that start it.

    Raises:
        ValueError: pip failed; the message is its last error line.
    """
    command = [sys.executable, *start, *arguments, "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        lines = [line for line in lines if "ResolutionImpossible" not in line] or lines
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no message"]
        raise ValueError(f"pip {arguments[0]} failed: {errors[-1].removeprefix('ERROR: ')}")


def download_archive(folder: Path) -> Path:
    """Download the source archive into `folder` and returns its path.

    pip asks the archive for its metadata, which runs its setup script: hence the need for torch,
    and the checksum that pip compares before that.

    Raises:
        ValueError: a build package is missing, or pip failed.
    """
    for name in ("torch", "setuptools"):
        if util.find_spec(name) is None:
            raise ValueError(f"{sys.executable}: no {name}; install it first, {PROJECT} needs it")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PROJECT} --hash=sha256:{ARCHIVE_SHA256}\n", encoding="utf-8")
    options = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--retries", "2")
    try:
        run_pip("download", *options, "--dest", str(folder), "--requirement", str(requirements))
    except ValueError as error:
        raise ValueError(
            f"{PROJECT}: {error}; check the network, or give the archive with --archive"
        ) from error
    archives = sorted(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise ValueError(f"{PROJECT}: pip left {len(archives)} archives in {folder}, wanted 1")
    return archives[0]


def install_wheel(wheel: Path) -> None:
    """Install the wheel, after an import straight from the file; leaves nothing when that fails.

    Raises:
        ValueError: the wheel cannot be imported, or pip failed.
    """
    trial = probe(first=wheel)
    if trial is None or trial.problem or not trial.location.startswith(str(wheel)):
        problem = trial.problem or f"{trial.location} came first" if trial else "not found"
        raise ValueError(f"{wheel.name}: not installed, its trial import failed: {problem}")
    site = Path(sysconfig.get_path("purelib"))
    fresh = [path for path in (site / "detectron2", site / DIST_INFO) if not path.exists()]
    try:
        run_pip("install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
    except BaseException:
        for path in fresh:
            shutil.rmtree(path, ignore_errors=True)
        raise


def ensure_detectron2(
    *, archive: Path | None = None, wheel_dir: Path | None = None, force: bool = False
) -> str:
    """Return a line about the detectron2 that is there, after installing one where there is none.

    Args:
        archive: the source archive; downloaded when None.
        wheel_dir: keeps the built wheel there.
        force: builds the pure-Python wheel anew although it works.

    Raises:
        ValueError: what keeps a working detectron2 from being there, and what to do.
        OSError: a file cannot be read or written.
    """
    build = probe()
    if not must_install(build, force=force):
        return f"{build}: nothing to do"
    if unmet := unmet_requirements():
        raise ValueError(f"{sys.executable}: detectron2 needs {', '.join(unmet)}; install first")
    with tempfile.TemporaryDirectory(prefix="detectron2-") as scratch:
        source = archive or download_archive(Path(scratch))
        wheel = build_wheel(source, (wheel_dir or Path(scratch)).resolve())
        install_wheel(wheel)
    build = probe()
    if build is None or build.problem:
        problem = build.problem if build else "not found"
        raise ValueError(f"{VERSION} is installed but does not work: {problem}")
    return f"{build}: installed"
