"""Stages inside an image on a real SLURM; a root folder and `chroot` stand for image and program.

What starts a stage is found inside the image alone, and the machine has another name there.
"""

import json
import shlex
import sys
from pathlib import Path

import pytest

from pipeline.executors.slurm.states import last_lines
from tests.slurm.conftest import stage_of
from tests.slurm.test_survival import all_done, chain, result, slurm, starts

pytestmark = pytest.mark.slurm
BOX = """#!/bin/bash
[ "$1" = --quiet ] && shift
[ -e "$1/python of the image" ] || { echo "FATAL: $(basename "$1") is no image" >&2; exit 255; }
exec unshare --mount --uts bash -euc '
hostname in-the-image
image=$1 from=$PWD
shift
for top in /*/; do mkdir -p "$image$top"; mount --rbind "$top" "$image$top"; done
exec chroot "$image" bash -c '\\''cd "$1" && shift && exec "$@"'\\'' bash "$from" "$@"
' bash "$@"
"""
PYTHON = f'#!/bin/bash\necho "in $(hostname)"\nexec {shlex.quote(sys.executable)} "$@"\n'


@pytest.fixture
def container(project) -> dict[str, object]:
    """A container's config; its folder's name has quotes, spaces and a newline before it."""
    (project.folder / "an image").mkdir()
    box, python = project.folder / "box", project.folder / "an image" / "python of the image"
    for path, text in ((box, BOX), (python, PYTHON)):
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    command = ["./box", "--quiet", "IMAGE", "/python of the image"]
    return {"image": "an image", "command": command}


def test_every_stage_runs_in_the_image_and_the_report_outside(project, container) -> None:
    plan = project.plan(container=container)
    project.run(plan)
    all_done(project, plan)
    for stage in plan.stages:
        manifest = json.loads((stage.run_dir / "manifest.json").read_text("utf-8"))
        made = manifest["provenance"]
        assert made["host"] == "in-the-image" and made["container"][-1] == "/python of the image"
        assert "in in-the-image\n" in (stage.run_dir / "log.txt").read_text("utf-8")
    assert {stage.signature for stage in plan.stages} == {
        s.signature for s in project.plan().stages
    }
    project.wait(plan, lambda _: (plan.config.root / "report" / "index.html").exists(), 30)


def test_a_stage_that_is_preempted_in_its_image_saves_and_goes_on_there(project, container) -> None:
    project.behave("a", steps=30, step_s=0.2)
    plan = project.plan(short=True, container=container)
    project.run(plan)
    standing = project.wait_steps(plan, "pretrain/a", 3)
    slurm("scancel", "--signal=USR2", standing.job_id)
    all_done(project, plan)
    assert result(plan, "pretrain/a") == chain(30)
    first, *later = starts(plan, "pretrain/a")
    assert first == 0 and later and 3 <= later[0] < 30
    log = (stage_of(plan, "pretrain/a").run_dir / "log.txt").read_text("utf-8")
    assert log.count("in in-the-image\n") == 2


def test_what_the_images_program_has_to_say_is_shown(project, container) -> None:
    Path("an image", "python of the image").unlink()
    plan = project.plan(short=True, container=container)
    project.run(plan)
    standing = project.wait_done(plan)["pretrain/a"]
    assert standing.status == "failed" and "ended with code 255" in str(standing.reason)
    assert last_lines(Path(standing.log))[-1] == "FATAL: an image is no image"
