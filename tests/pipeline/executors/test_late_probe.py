"""A `probe:` that is given to a finished pretraining, with fake stages."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipeline.commands import main as commands
from pipeline.executors.local import late_probe_lines
from pipeline.report.collect import all_states, collect
from pipeline.report.remarks import probe_remarks, read_manifests
from pipeline.stages.run_folder import LATE_PROBE
from tests.pipeline.local_runs import CONFIG, ONLY_A, ran, small_plan

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def finished(fakes: Path) -> Path:
    """Run everything, then give the recipe a probe; return the pretraining's folder."""
    assert commands.execute("run", CONFIG, ONLY_A) == 0
    ran()
    for split in ("train", "val"):
        (fakes / "data" / "labelled" / split / "one").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(fakes / "data" / "labelled" / split / "one" / "0.png")
    content = yaml.safe_load(Path("configs/a.yaml").read_text("utf-8"))
    data = {"name": "labelled", "root": "data/labelled", "format": "imagefolder"}
    content["probe"] = {"every_epochs": 2, "data": data}
    Path("configs/a.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return small_plan(ONLY_A).stages[0].run_dir


def planned(capsys: pytest.CaptureFixture[str], executor: str = "local") -> list[str]:
    capsys.readouterr()
    assert commands.execute("plan", CONFIG, ONLY_A, commands.Options(executor=executor)) == 0
    return [line for line in capsys.readouterr().out.splitlines() if "probe: came after" in line]


def test_without_states_plan_says_what_can_be_measured(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "epoch_0003.pth").touch()  # no epoch at which the probe measures
    (line,) = planned(capsys)
    assert line == (
        "pretrain/a: probe: came after it was finished, and no state of such an epoch was kept "
        f"(keep_every_epochs); python tools/probe.py {finished / 'out.txt'} measures its end"
    )
    assert commands.execute("run", CONFIG, ONLY_A) == 0 and ran() == []


def test_the_last_state_is_measured_whatever_its_epoch(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(Path("configs/a.yaml").read_text("utf-8"))
    content["probe"]["every_epochs"] = 1000
    Path("configs/a.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (finished / "last.pth").touch()
    (line,) = planned(capsys)
    assert line.endswith("measures it on the states that were kept: last.pth")


def test_a_probe_that_was_measured_along_the_way_is_not_late(finished: Path) -> None:
    plan = small_plan(ONLY_A)
    assert len(late_probe_lines(plan, all_states(plan))) == 1
    job = json.loads((finished / "job.json").read_text("utf-8"))
    job["settings"]["probe"] = plan.stages[0].settings["probe"]
    (finished / "job.json").write_text(json.dumps(job), encoding="utf-8")
    assert late_probe_lines(plan, all_states(plan)) == []
    assert probe_remarks(plan, read_manifests(plan)) == []
    job["settings"]["probe"] = job["settings"]["probe"] | {"k": 3, "every_epochs": 7}
    (finished / "job.json").write_text(json.dumps(job), encoding="utf-8")
    assert probe_remarks(plan, read_manifests(plan)) == [
        "pretrain/a: its k-NN scores are of another probe (k: before 3, now 5) than the config's; "
        "put that back, or measure by an entry of `probes:`"
    ]
    assert late_probe_lines(plan, all_states(plan)) == []


def test_the_next_run_measures_the_states_that_were_kept(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("epoch_0002.pth", "epoch_0003.pth", "last.pth"):
        (finished / name).touch()
    for executor in ("local", "slurm"):
        (line,) = planned(capsys, executor)
        assert line.endswith(
            "run on this machine (or run --only pretrain/a) measures it on the states that were "
            "kept: epoch_0002.pth, last.pth"
        )
    (finished / "metrics.jsonl").write_text('{"step": 8, "loss": 1}\n', encoding="utf-8")
    assert commands.execute("run", CONFIG, ONLY_A) == 0 and ran() == []
    assert planned(capsys) == []
    curve = collect(small_plan(ONLY_A)).pretraining[0]
    assert curve.points == ({"step": 4.0, "knn/top1": 50.0}, {"step": 8.0, "loss": 1.0})
    content = yaml.safe_load(Path("configs/a.yaml").read_text("utf-8"))
    content["probe"]["every_epochs"] = 1
    Path("configs/a.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert len(planned(capsys)) == 1


def test_a_probe_that_breaks_is_a_fault_and_takes_nothing_away(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "last.pth").touch()
    Path("behaviour-probe").write_text("fail", encoding="utf-8")
    assert commands.execute("run", CONFIG, ONLY_A) == 1
    out = capsys.readouterr().out
    assert f"pretrain/a: probe: was not measured; see {finished / 'log.txt'}" in out
    assert "no labels here" in (finished / "log.txt").read_text("utf-8")
    rows = json.loads(Path("runs/tiny/report/results.json").read_text("utf-8"))["rows"]
    assert len(rows) == 2 and not (finished / LATE_PROBE).exists()
