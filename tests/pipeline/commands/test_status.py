"""`status` and `logs` over a fake SLURM."""

import io
import json

import pytest
from rich.console import Console

from pipeline.commands import slurm
from pipeline.commands.main import Options, execute
from pipeline.commands.status import show_status, status_text
from pipeline.executors.slurm import states
from tests.pipeline.slurm_runs import CONFIG, plan_of, run, standings_of

pytestmark = pytest.mark.usefixtures("in_process")


def test_status_as_json_and_the_table_agree(fake, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    job = standings_of()["pretrain/a"].job_id
    fake.set_state(job, state="RUNNING", node="n2")
    pretrain = next(entry for entry in plan_of().stages if entry.name == "pretrain/a")
    line = {"step": 10, "max_steps": 40, "loss": 0.5}
    (pretrain.run_dir / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    capsys.readouterr()
    assert execute("status", CONFIG, ["seeds=[0]"], Options(as_json=True)) == 0
    content = json.loads(capsys.readouterr().out)
    standing = next(entry for entry in content["stages"] if entry["stage"] == "pretrain/a")
    assert (
        standing["status"] == "running" and standing["node"] == "n2" and standing["job_id"] == job
    )
    assert (
        standing["elapsed_s"] == 65
        and standing["left_s"] == 195
        and standing["limit_left_s"] == 3535
    )
    assert content["counts"] == {"running": 1, "queued": len(content["stages"]) - 1}
    console = Console(width=200, record=True, quiet=True)
    shown = states.read_standings(plan_of())[0]["pretrain/a"].metric
    assert shown == "step 10/40  training  loss 0.5"
    slurm.show_plan(plan_of(), console)


def test_the_table_names_stages_in_full_and_failures_once(fake) -> None:
    run("seeds=[0,1]")
    stages = {stage.name: stage for stage in plan_of("seeds=[0,1]").stages}
    (stages["pretrain/a"].run_dir / "failure.json").write_text('{"reason": "NaN"}', "utf-8")
    (stages["pretrain/a"].run_dir / "log.txt").write_text("one\ntwo\n", "utf-8")
    for index, state in ((0, "FAILED"), (1, "RUNNING")):
        fake.set_state(f"101_{index}", state=state, node="n2")
    console = Console(width=80, record=True, file=io.StringIO())
    assert show_status(plan_of("seeds=[0,1]"), console) == 1
    lines = console.export_text().splitlines()
    assert sum("finetune/coco--seed1" in line and "queued" in line for line in lines) == 2
    assert sum("(Priority)" in line for line in lines) == 4  # of the random backbone
    assert "pretrain/a: NaN (log: " in "\n".join(lines) and "    two" in lines
    tuned = [f"finetune/a--{task}--seed{seed}" for task in ("coco", "voc") for seed in (0, 1)]
    tuned.insert(0, "convert/a")
    assert lines[-1] == f"{', '.join(tuned)}: needs pretrain/a, which failed: NaN"
    assert "16 stages: 1 running, 9 queued, 5 not run, 1 failed; folder " in "\n".join(lines)


def test_what_stages_share_is_one_line_and_no_log_is_named_that_is_not_there(fake) -> None:
    fake.refuse("finetune-b")
    assert run("seeds=[0,1]") == 2
    plan = plan_of("seeds=[0,1]")
    console = Console(width=80, record=True, file=io.StringIO())
    assert show_status(plan, console) == 0
    said = [line for line in console.export_text().splitlines() if "taken back" in line]
    assert len(said) == 1 and " more: taken back: sbatch refused finetune-b: " in said[0]
    fake.refuse("nothing")
    run("seeds=[0,1]")
    job = standings_of("seeds=[0,1]")["pretrain/a"].job_id
    fake.set_state(job, state="DEADLINE")
    console = Console(width=200, record=True, file=io.StringIO())
    assert show_status(plan, console) == 1
    (line,) = (each for each in console.export_text().splitlines() if "DEADLINE" in each[:60])
    assert line.startswith(f"pretrain/a: job {job} ended as DEADLINE") and "log.txt" not in line


def test_logs_are_found_by_the_name_of_the_stage(fake, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    pretrain = next(entry for entry in plan_of().stages if entry.name == "pretrain/a")
    (pretrain.run_dir / "log.txt").write_text("one\ntwo\n", encoding="utf-8")
    capsys.readouterr()
    assert execute("logs", CONFIG, ["seeds=[0]"], Options(stage="pretrain/a")) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["one", "two"]
    assert execute("logs", CONFIG, ["seeds=[0]"], Options(stage="pretrain/z")) == 2
    assert "unknown stage 'pretrain/z'; did you mean 'pretrain/" in capsys.readouterr().err
    assert execute("logs", CONFIG, ["seeds=[0]"]) == 2
    assert "--stage is missing; tiny has " in capsys.readouterr().err


def test_logs_take_the_names_that_status_shows(fake, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    stages = {stage.name: stage for stage in plan_of().stages}
    (stages["finetune/a--voc--seed0"].run_dir / "log.txt").write_text("of a\n", encoding="utf-8")
    capsys.readouterr()
    short = Options(stage="finetune/voc--seed0")
    assert execute("logs", CONFIG, ["seeds=[0]"], short) == 2
    fitting = [name for name in stages if name.endswith("--voc--seed0")]
    assert len(fitting) > 1 and capsys.readouterr().err == (
        "run_pipeline: --stage: 'finetune/voc--seed0' is of several stages; did you mean one of "
        f"{', '.join(fitting)}?\n"
    )
    only_a = ["seeds=[0]", "backbones=[{name: a, pretrain: a.yaml}]"]
    assert execute("logs", CONFIG, only_a, short) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "of a"


def test_a_backbones_name_is_taken_off_the_front_alone(fake, monkeypatch) -> None:
    plan = plan_of()
    slugs = {"c--voc--seed0": "finetune/voc--seed0", "doc--doc--seed1": "finetune/doc--seed1"}
    made = {
        slug: states.Standing(f"finetune/{slug}", slug.partition("--")[0], "queued")
        for slug in slugs
    }
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(status_text(plan, made, []))
    for label in slugs.values():
        assert f" {label} " in console.export_text(clear=False)


def test_remarks_on_the_results_are_among_the_notes(
    fake, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [
        "seeds=[0]",
        "backbones=[{name: random, random: true}]",
        "tasks.0.overrides=[MODEL.BACKBONE.FREEZE_AT=3]",
    ]
    wanted = "MODEL.BACKBONE.FREEZE_AT is 3: its stem, res2, res3 stay random"
    execute("status", CONFIG, changes, Options(as_json=True))
    assert any(wanted in note for note in json.loads(capsys.readouterr().out)["notes"])
    execute("status", CONFIG, changes, Options())
    assert wanted in capsys.readouterr().out
