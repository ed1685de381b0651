"""The recipes of containers/: the same steps from the same files, and no versions of their own.

`make test-containers` builds them for real.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.source import ROOT

FOLDER = ROOT / "containers"
HOME = "/opt/whitening-transfer"


def steps(recipe: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile: words in capitals, and what follows."""
    text = re.sub(r"\\\n", " ", recipe)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def sections(recipe: str) -> dict[str, list[str]]:
    """The lines of an apptainer.def by section; the header's are under the empty name."""
    answer: dict[str, list[str]] = {"": []}
    name = ""
    for line in recipe.splitlines():
        if line.startswith("%"):
            name = line[1:]
            answer[name] = []
        elif line.strip() and not line.startswith("#"):
            answer[name].append(line.strip())
    return answer


DOCKERFILE = steps((FOLDER / "Dockerfile").read_text("utf-8"))
DEFINITION = sections((FOLDER / "apptainer.def").read_text("utf-8"))


def test_both_begin_and_end_alike() -> None:
    arguments = dict(rest.split("=") for word, rest in DOCKERFILE if word == "ARG")
    assert arguments == dict(line.split("=") for line in DEFINITION["arguments"])
    assert arguments["VARIANT"] == "cuda" and arguments["TORCH_INDEX"] == ""
    assert ("FROM", "${BASE}") in DOCKERFILE and "From: {{ BASE }}" in DEFINITION[""]
    (run,) = [rest for word, rest in DOCKERFILE if word == "RUN"]
    (post,) = DEFINITION["post"]
    templated = re.sub(r"\$(\w+)", r"{{ \1 }}", run)
    assert post == f"cd {HOME} && {templated}" and "sh containers/install.sh" in run
    environment = " ".join(rest for word, rest in DOCKERFILE if word == "ENV")
    assert DEFINITION["environment"] == ["export PATH=/opt/venv/bin:$PATH"]
    assert "PATH=/opt/venv/bin:$PATH " in environment
    (words,) = [rest for word, rest in DOCKERFILE if word == "CMD"]
    assert (
        f"exec {' '.join(re.findall(r'[^][, ]+', words))}".replace('"', "")
        == (DEFINITION["runscript"][0])
    )


def test_both_take_the_same_files_all_that_the_project_needs() -> None:
    assert ("WORKDIR", HOME) in DOCKERFILE
    copied = []
    for word, rest in DOCKERFILE:
        if word == "COPY":
            *sources, target = rest.split()
            assert target in ("./", f"{sources[0]}/")  # else a folder's content would be scattered
            copied += sources
    assert copied == [line.split()[0] for line in DEFINITION["files"]]
    assert all(line.split()[1] == f"{HOME}/{line.split()[0]}" for line in DEFINITION["files"])
    answer = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tops = {name.partition("/")[0] for name in answer.stdout.splitlines()}
    left_out = {"docs", "tests", "Makefile", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"}
    left_out |= {"environment.yml", *(top for top in tops if top.startswith("."))}
    assert {*copied} == tops - left_out


def test_constraints_are_the_only_list_of_versions() -> None:
    for path in FOLDER.iterdir():
        text = "\n".join(line.partition("#")[0] for line in path.read_text("utf-8").splitlines())
        assert not re.search(r"[=<>~]=\s*\d|pip install", text), path.name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "install: variant '', wanted cpu or cuda\n"),
        (("gpu",), "install: variant 'gpu', wanted cpu or cuda\n"),
        (("cpu",), "; run it in the project's folder\n"),
    ],
)
def test_what_cannot_be_installed_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    answer = subprocess.run(
        ["sh", FOLDER / "install.sh", *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.endswith(words) and len(answer.stderr.splitlines()) == 1


COMMANDS = """#!/bin/sh
case $0 in
*/id) echo 0 ;;
*/sh) echo "sh $* $VENV [$EXTRAS] ${PIP_EXTRA_INDEX_URL:-}" >>said ;;
*/apt-get) echo "apt-get $1" >>said ;;
*/python) echo "$CUDA" ;;
esac
"""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@pytest.mark.parametrize(
    ("variant", "index", "cuda", "indexes", "fault"),
    [
        ("cuda", "", "13.0", "", ""),
        ("cuda", "https://x/cu126", "12.6", "https://x/cu126", ""),
        ("cuda", "", "", "", "wanted torch for cuda, got one for CPUs"),
        ("cpu", "", "", CPU_INDEX, ""),
        ("cpu", "https://mirror/cpu", "", "https://mirror/cpu", ""),
        ("cpu", "", "13.0", CPU_INDEX, "wanted torch for cpu, got one for CUDA 13.0"),
    ],
)
def test_the_variant_says_where_torch_comes_from_and_is_checked(
    tmp_path: Path, variant: str, index: str, cuda: str, indexes: str, fault: str
) -> None:
    """The script with stand-ins for all that would change this machine."""
    (tmp_path / "bin").mkdir()
    for name in ("id", "sh", "apt-get", "python", "rm"):
        (tmp_path / "bin" / name).write_text(COMMANDS, "utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "constraints.txt").touch()
    script = (FOLDER / "install.sh").read_text("utf-8").replace("/opt/venv/bin/python", "python")
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "TORCH_INDEX": index, "CUDA": cuda}
    answer = subprocess.run(
        ["/bin/sh", "-c", script, "install.sh", variant],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = (tmp_path / "said").read_text("utf-8").splitlines()
    assert said[:2] == ["apt-get update", "apt-get install"]
    assert said[2].strip() == f"sh tools/setup_env.sh /opt/venv [jpeg] {indexes}".strip()
    assert (answer.returncode == 2) is bool(fault) and fault in answer.stderr, answer.stderr
