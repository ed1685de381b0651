"""Help and refusals of every script import neither torch nor anything else that takes seconds.

All run in one child process, so that whatever is imported is seen, and by whom it was.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.command_lines import REFUSED

ROOT = Path(__file__).resolve().parents[2]
SLOW = ("torch", "torchvision", "detectron2", "numpy", "scipy", "sklearn", "matplotlib",
        "pycocotools", "faster_coco_eval", "submitit", "tensorboard")  # fmt: skip
CHILD = """
import contextlib, io, json, runpy, sys, traceback
folder, slow, commands = json.loads(sys.stdin.read())
answers, path = [], list(sys.path)
for script, *words in commands:
    output, errors = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
    sys.argv[:], sys.path[:] = [script, *words], path
    before = sys.modules.keys() & set(slow)
    code = None
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            runpy.run_path(f"{folder}/{script}", run_name="__main__")
        except SystemExit as left:
            code = left.code
        except Exception:
            traceback.print_exc()
    imported = sorted((sys.modules.keys() & set(slow)) - before)
    texts = [stream.seek(0) or stream.read() for stream in (output, errors)]
    answers.append([code, imported, *texts])
sys.stdout.write(json.dumps(answers))
"""
Answer = tuple[int, list[str], str, str]  # exit code, slow modules, output, errors
COMMANDS = [
    (script, *words) for script, refused in REFUSED.items() for words in (("--help",), *refused)
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Answer]:
    folder = tmp_path_factory.mktemp("empty")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=folder, capture_output=True, text=True, check=True,
        input=json.dumps([str(ROOT / "tools"), SLOW, COMMANDS]),
        env=environment | {"DETECTRON2_DATASETS": str(folder / "datasets")},
    )  # fmt: skip
    assert not list(folder.iterdir())
    return dict(zip(COMMANDS, json.loads(child.stdout), strict=True))


@pytest.mark.parametrize(
    "command", COMMANDS, ids=lambda command: " ".join(command).replace(f"{ROOT}/", "")
)
def test_nothing_slow_is_imported(
    command: tuple[str, ...], answers: dict[tuple[str, ...], Answer]
) -> None:
    code, imported, output, errors = answers[command]
    assert imported == []
    if command[1:] == ("--help",):
        assert code == 0 and output.startswith("usage:")
    else:
        lines = errors.splitlines()
        assert code == 2 and output == "" and "Traceback" not in errors
        assert lines[-1].startswith((command[0][:-3], "datasets/", "/")), errors
