"""Every command and config in the documentation: run, or marked with what it needs.

A block ```sh or ```python is run in a copy of the project with embedded data, a block ```diff is
applied to it; Python blocks in a row share a process, which imports torch once, but no names. A
comment on the line before says otherwise: `<!-- needs: ... -->` what the machine would have to have
(then only its commands are checked to exist), `<!-- file: ... -->` the file that the block is. A
block ```yaml must be a config that this version accepts. Where a page writes modules, the project
that comes out of it has to pass `RULES`.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.schema import PipelineConfig
from pretrain.config.pretrain import PretrainConfig

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = sorted((ROOT / "configs" / "pipeline").glob("[!r]*.yaml"))  # rates are no plan
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = {
    "a cluster", "real data", "20 minutes", "a GPU", "an editor", "the published code", "a browser",
    "torch of your own", "a builder of images", "a bundle", "a network", "a tracker",
}  # fmt: skip
FENCE = re.compile(
    r"(?:^ *<!-- (?P<mark>needs|file): (?P<value>[^>]*) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
EACH = "import runpy, sys; [runpy.run_path(path, run_name='__main__') for path in sys.argv[1:]]"
RUN = {
    "sh": ["bash", "-euo", "pipefail"],
    "python": ["python", "-c", EACH],
    "diff": ["git", "apply"],
}
RULES_OF_ANY_TORCH = (
    "ruff check .",
    "ruff format --check .",
    "python -m pytest -q tests/test_sizes.py tests/test_imports.py tests/docs/test_reference.py",
)
# each torch declares other types; the code is held to those of the pinned one
RULES = (*RULES_OF_ANY_TORCH, "mypy -p pretrain -p transfer -p pipeline")


@dataclass(frozen=True)
class Block:
    language: str
    body: str
    needs: str | None = None
    file: str | None = None

    @property
    def is_run(self) -> bool:
        return self.needs is None and self.language in ("sh", "python", "diff")

    @property
    def is_of_python(self) -> bool:
        return self.is_run and self.file is None and self.language == "python"

    @property
    def config(self) -> dict[str, Any]:
        content = yaml.safe_load(self.body) if self.language == "yaml" else {}
        assert isinstance(content, dict), self.body
        return content


def blocks(path: Path) -> list[Block]:
    answer = []
    for match in FENCE.finditer(path.read_text("utf-8")):
        indent = len(match["indent"])
        body = "".join(line[indent:] or "\n" for line in match["body"].splitlines(keepends=True))
        mark = {match["mark"]: match["value"]} if match["mark"] else {}
        answer.append(Block(match["language"], body, **mark))
    return answer


def commands(body: str) -> list[str]:
    joined = body.replace("\\\n", " ")
    return [line.partition("#")[0].strip() for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "project"
    anywhere = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
    at_the_top = shutil.ignore_patterns("runs", "datasets", "build", "bundle")

    def ignored(path: str, names: list[str]) -> set[str]:
        return anywhere(path, names) | (at_the_top(path, names) if Path(path) == ROOT else set())

    shutil.copytree(ROOT, folder, ignore=ignored)
    if (cache := ROOT / ".mypy_cache").is_dir():  # a page's rules then check what it adds alone
        shutil.copytree(cache, folder / cache.name)
    return folder


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_blocks_are_marked(path: Path) -> None:
    for block in blocks(path):
        assert block.language in ("sh", "yaml", "python", "diff", "text"), block.body
        assert block.needs is None or block.needs in NEEDS, block.needs
    assert path.read_text("utf-8").count("```") == 2 * len(blocks(path))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_marked_commands_exist(path: Path) -> None:
    written = {block.file for block in blocks(path)}
    for block in blocks(path):
        for command in commands(block.body) if block.language == "sh" else []:
            for tool in re.findall(r"python (tools/\w+\.py)", command):
                assert (ROOT / tool).is_file(), command
            for module in re.findall(r"python -m (benchmarks\.[\w.]+)", command):
                assert (ROOT / module.replace(".", "/") / "__main__.py").is_file(), command
            for config in re.findall(r"\bconfigs/[\w/.-]+\.yaml", command):
                assert config in written or (ROOT / config).is_file(), command
            for target in re.findall(r"^make ([\w-]+)", command):
                assert f"\n{target}:" in (ROOT / "Makefile").read_text("utf-8"), command


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_configs_are_accepted(path: Path) -> None:
    for block in blocks(path):
        content = block.config
        if "backbones" in content:
            PipelineConfig.model_validate(content)
        elif "loss" in content and "_BASE_" not in content:
            PretrainConfig.model_validate(content)


def test_documents_name_different_runs() -> None:
    """A run folder belongs to one config: no document may send two things to the same folder."""
    names = [yaml.safe_load(path.read_text("utf-8"))["name"] for path in PIPELINES]
    for path in DOCUMENTS:
        names += [b.config["name"] for b in blocks(path) if "backbones" in b.config]
        names += re.findall(r"--output-dir runs/([\w-]+)", path.read_text("utf-8"))
    assert len(names) > 10 and sorted(set(names)) == sorted(names)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "path",
    [path for path in DOCUMENTS if any(block.is_run for block in blocks(path))],
    ids=lambda path: path.stem,
)
def test_commands_run(path: Path, sandbox: Path) -> None:
    path_of = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path_of, "TMPDIR": str(sandbox)}

    def succeeds(command: list[str], about: str) -> None:
        answer = subprocess.run(
            command, cwd=sandbox, env=env, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, f"{about}\n{answer.stdout}\n{answer.stderr}"

    steps = [block for block in blocks(path) if block.is_run or block.file is not None]
    for _, group in itertools.groupby(steps, lambda each: each.is_of_python or id(each)):
        block, *others = group
        if block.file is not None:
            (sandbox / block.file).parent.mkdir(parents=True, exist_ok=True)
            (sandbox / block.file).write_text(block.body, "utf-8")
            continue
        names = []
        for number, each in enumerate([block, *others]):
            names.append(f"block-{number}")
            (sandbox / names[-1]).write_text(each.body, "utf-8")
        succeeds([*RUN[block.language], *names], "\n".join(each.body for each in [block, *others]))
    if any(str(block.file).endswith(".py") for block in steps):
        pins = (ROOT / "constraints.txt").read_text("utf-8").split()
        is_pinned = f"torch=={version('torch').partition('+')[0]}" in pins
        for rule in RULES if is_pinned else RULES_OF_ANY_TORCH:
            succeeds(rule.split(), rule)
