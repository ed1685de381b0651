"""A bundle: the wheels that a machine without network needs, in a folder that appears whole.

pip resolves for the target's Python and platform. What a requirement asks of the machine
(`; python_version < "3.12"`) it asks of Python's own `platform`, which is the target's here.
"""

import hashlib
import platform
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer.detectron2_wheel.install import download_archive, run_pip
from transfer.detectron2_wheel.wheel import build_wheel

PROJECT_FILES = ("pyproject.toml", "constraints.txt")
TORCH = ("torch", "torchvision")
SOURCE_ONLY = ("fvcore", "omegaconf")  # they, or what they need, have no wheel on PyPI
SUMS, README = "SHA256SUMS", "README.txt"
MIN_GLIBC, MIN_PYTHON = 5, 11  # 2.5: manylinux1
LARGEST = 10
# this machine's, and of a Linux of 2018 or newer, as torch's own wheels are
PYTHON, PLATFORM = f"3.{sys.version_info.minor}", f"manylinux_2_28_{platform.machine()}"
AS_TARGET = """import platform, runpy, sys
python, machine = sys.argv.pop(1), sys.argv.pop(1)
platform.python_version = lambda: python
platform.python_version_tuple = lambda: tuple(python.split("."))
platform.machine = lambda: machine
runpy.run_module("pip", run_name="__main__", alter_sys=True)"""
README_TEXT = """Wheels for {name}: Python {python}, {platform}{without}.
On the machine without network, in a copy of the project with this folder in it:

    {environment}
    python -m pip install --no-index --find-links {folder} -e . detectron2

Is this copy whole?    (cd {folder} && sha256sum --quiet -c {sums})
"""


@dataclass(frozen=True)
class Target:
    """A machine to install on: `3.12`, and the newest platform whose wheels it takes."""

    python: str
    platform: str

    def __post_init__(self) -> None:
        """Refuse what no wheel is for.

        Raises:
            ValueError: what is wrong, and what is wanted.
        """
        minor = re.fullmatch(r"3\.(\d{1,2})", self.python)
        if not minor or int(minor[1]) < MIN_PYTHON:
            raise ValueError(f"Python {self.python}: wanted 3.{MIN_PYTHON} or newer, such as 3.12")
        if not re.fullmatch(r"manylinux_2_\d{1,2}_(x86_64|aarch64)", self.platform):
            raise ValueError(
                f"platform {self.platform}: wanted manylinux_2_<glibc>_x86_64 or _aarch64, such as "
                "manylinux_2_28_x86_64 (ldd --version names the machine's glibc, such as 2.28)"
            )

    @property
    def machine(self) -> str:
        """Return the processor, as `uname -m` names it."""
        return self.platform.split("_", 3)[3]

    def options(self) -> list[str]:
        """Return pip's options for wheels of this machine, also those for an older glibc."""
        glibc = int(self.platform.split("_")[2])
        names = [f"manylinux_2_{minor}" for minor in range(glibc, MIN_GLIBC - 1, -1)]
        old = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
        names += [name for minor, name in old.items() if minor <= glibc]
        options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={self.python}"]
        return [*options, *(f"--platform={name}_{self.machine}" for name in [*names, "linux"])]


def requirements(project: Path, extras: Sequence[str], *, with_torch: bool) -> list[str]:
    """Return what the project in a folder needs: its own, those of extras, and its build's.

    Raises:
        ValueError: there is no such extra.
        OSError: the folder holds no project.
    """
    content = tomllib.loads((project / PROJECT_FILES[0]).read_text(encoding="utf-8"))
    known = content["project"].get("optional-dependencies", {})
    if unknown := [name for name in extras if name not in known]:
        raise ValueError(f"extra {', '.join(unknown)}: unknown; known: {', '.join(known)}")
    texts = [*content["project"]["dependencies"], *content["build-system"]["requires"]]
    texts += [text for name in extras for text in known[name]]
    of_torch = re.compile(rf"({'|'.join(TORCH)})(?![\w.-])", re.IGNORECASE)
    return [text for text in texts if with_torch or not of_torch.match(text.strip())]


def make_bundle(
    project: Path,
    folder: Path,
    target: Target,
    *,
    with_torch: bool = True,
    extras: Sequence[str] = (),
) -> str:
    """Write the bundle for a project and return a table of its sizes.

    It grows beside `folder` and is given its name last, in the place of an earlier one.

    Raises:
        ValueError: a package cannot be had for this target.
        OSError: a file cannot be read or written.
    """
    needs = requirements(project, extras, with_torch=with_torch)
    if folder.exists() and not (folder / SUMS).is_file():
        raise ValueError(f"{folder}: is there and is no bundle; name another folder, or remove it")
    partial, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    _clear(folder, partial, old)  # of one that was killed
    partial.mkdir(parents=True)
    try:
        _gather(partial, project, target, needs, with_torch)
        _describe(partial, folder.name, target, with_torch)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except ValueError as error:
        raise ValueError(
            f"Python {target.python}, {target.platform}: {error}; check --python, --platform and "
            "the network"
        ) from error
    finally:
        _clear(folder, partial, old)
    return sizes(folder)


def _clear(folder: Path, partial: Path, old: Path) -> None:
    """Remove what is no whole bundle, and an earlier one unless nothing took its place."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    for path in (partial, old):
        shutil.rmtree(path, ignore_errors=True)


def _gather(
    folder: Path, project: Path, target: Target, needs: list[str], with_torch: bool
) -> None:
    """Write into a folder all wheels that the needs need, and ask pip whether it has all."""
    as_target = ("-c", AS_TARGET, f"{target.python}.0", target.machine)
    pins = ("--constraint", str(project / PROJECT_FILES[1]))
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        built = Path(scratch)
        archive = download_archive(built)
        run_pip("wheel", "--no-build-isolation", *pins, "--wheel-dir", scratch, *SOURCE_ONLY)
        for wheel in built.glob("*.whl"):
            if not wheel.name.endswith("-none-any.whl"):
                wheel.unlink()  # for this Python, which may be another
        search = ("--find-links", scratch, *target.options(), *pins)
        run_pip("download", "--dest", str(folder), *search, *needs, start=as_target)
        if not with_torch and list(folder.glob("torch-*")):
            raise ValueError("an extra needs torch, which the bundle is to be without")
        build_wheel(archive, folder)
        there = ("--isolated", "--no-index", "--find-links", str(folder), *target.options(), *pins)
        # download asked for the target's Python; install compares its own
        check = ("install", "--dry-run", "--ignore-installed", "--ignore-requires-python")
        whole = [*needs, "detectron2"] if with_torch else needs
        run_pip(*check, "--target", scratch, *there, *whole, start=as_target)


def _describe(folder: Path, name: str, target: Target, with_torch: bool) -> None:
    """Write how to install from a bundle of this name, and the sha256 of its wheels last."""
    environment = f"python{target.python} -m venv .venv && . .venv/bin/activate"
    text = README_TEXT.format(
        name="whitening-transfer-benchmark",
        python=target.python,
        platform=target.platform,
        without="" if with_torch else ", without torch and torchvision, which are there already",
        environment=environment if with_torch else "# activate the environment that has torch",
        folder=name,
        sums=SUMS,
    )
    (folder / README).write_text(text, encoding="utf-8")
    lines = []
    for path in sorted(folder.glob("*.whl")):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    (folder / SUMS).write_text("".join(lines), encoding="ascii")


def sizes(folder: Path) -> str:
    """Return the sizes of a bundle's largest wheels, of the others and of all, a line each."""
    wheels = sorted(folder.glob("*.whl"), key=lambda path: -path.stat().st_size)
    megabytes = [path.stat().st_size / 1e6 for path in wheels]
    rows = [(path.name, size) for path, size in zip(wheels, megabytes, strict=True)][:LARGEST]
    if more := megabytes[LARGEST:]:
        rows.append((f"{len(more)} others", sum(more)))
    rows.append((f"{folder}: {len(wheels)} wheels", sum(megabytes)))
    return "\n".join(f"{size:8.1f} MB  {name}" for name, size in rows)
