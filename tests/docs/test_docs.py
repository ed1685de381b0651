"""Every command and config in the documentation: run, or marked with what it needs.

A block ```sh is run in a copy of the project with embedded data; a comment `<!-- needs: ... -->` on
the line before says what the machine would have to have, and then only its commands are checked to
exist. A block ```yaml must be a config that this version accepts.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipeline.config.schema import PipelineConfig
from pretrain.config.pretrain import PretrainConfig

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = {"a cluster", "real data", "20 minutes", "a GPU", "an editor", "the published code"}
FENCE = re.compile(
    r"(?:^ *<!-- needs: (?P<needs>[^>]*) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n"
    r"(?P<body>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    language: str
    needs: str | None
    body: str


def blocks(path: Path) -> list[Block]:
    found = []
    for match in FENCE.finditer(path.read_text("utf-8")):
        indent = len(match["indent"])
        body = "".join(line[indent:] for line in match["body"].splitlines(keepends=True))
        found.append(Block(match["language"], match["needs"], body))
    return found


def commands(body: str) -> list[str]:
    joined = body.replace("\\\n", " ")
    return [line.partition("#")[0].strip() for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "project"
    anywhere = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
    at_the_top = shutil.ignore_patterns("runs", "datasets", "tests", "build")

    def ignored(path: str, names: list[str]) -> set[str]:
        return anywhere(path, names) | (at_the_top(path, names) if Path(path) == ROOT else set())

    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_blocks_are_marked(path: Path) -> None:
    for block in blocks(path):
        assert block.language in ("sh", "yaml", "python", "text"), block.body
        assert block.needs is None or block.needs in NEEDS, block.needs
    assert path.read_text("utf-8").count("```") == 2 * len(blocks(path))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_marked_commands_exist(path: Path) -> None:
    for block in blocks(path):
        for command in commands(block.body) if block.language == "sh" else []:
            for tool in re.findall(r"python (tools/\w+\.py)", command):
                assert (ROOT / tool).is_file(), command
            for module in re.findall(r"python -m (benchmarks\.[\w.]+)", command):
                assert (ROOT / module.replace(".", "/") / "__main__.py").is_file(), command
            for config in re.findall(r"\bconfigs/[\w/.-]+\.yaml", command):
                assert (ROOT / config).is_file(), command
            for target in re.findall(r"^make ([\w-]+)", command):
                assert f"\n{target}:" in (ROOT / "Makefile").read_text("utf-8"), command


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_configs_are_accepted(path: Path) -> None:
    for block in blocks(path):
        if block.language == "yaml":
            content = yaml.safe_load(block.body)
            assert isinstance(content, dict), block.body
            if "backbones" in content:
                PipelineConfig.model_validate(content)
            elif "loss" in content and "_BASE_" not in content:
                PretrainConfig.model_validate(content)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "path",
    [path for path in DOCUMENTS if any(b.language == "sh" and not b.needs for b in blocks(path))],
    ids=lambda path: path.stem,
)
def test_commands_run(path: Path, sandbox: Path) -> None:
    env = dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for block in blocks(path):
        if block.language == "sh" and not block.needs:
            answer = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.body],
                cwd=sandbox, env=env, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert answer.returncode == 0, f"{block.body}\n{answer.stdout}\n{answer.stderr}"
