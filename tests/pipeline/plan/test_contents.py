"""A stage reads what it was planned with: compared before it starts and before its manifest."""

import json
from pathlib import Path

import pytest
import yaml

from pipeline.plan.build import load_plan
from pipeline.plan.data_identity import contents_of
from pipeline.plan.plan import Plan
from pipeline.stages.files import read_json
from pipeline.stages.run_folder import prepare, read_state
from pipeline.worker import run as run_worker
from tests.pipeline.local_runs import CONFIG, ONLY_A, run

RANDOM = ["backbones=[{name: random, random: true}]", "tasks=[{name: coco, config: coco.yaml}]"]
ANNOTATIONS = Path("data/coco/annotations.json")


def signatures(*overrides: str) -> list[str]:
    return [stage.signature for stage in load_plan(CONFIG, list(overrides)).stages]


def annotations_of(plan: Plan) -> str:
    """The digest of the annotations that the first stage trains on."""
    return str(plan.stages[0].identity["data_content"]["TRAIN"][0]["annotations"]["digest"])


def test_a_plan_and_its_worker_take_the_same_identity(project: Path) -> None:
    Path("given.pth").write_bytes(b"weights")
    backbones = "backbones=[{name: given, checkpoint: given.pth}, {name: a, pretrain: a.yaml}]"
    for stage in load_plan(CONFIG, [backbones]).stages:
        settings = json.loads(json.dumps(stage.settings))  # as job.json holds them
        contents = contents_of(stage.kind, settings)
        assert contents.items() <= stage.identity.items()
        assert contents or stage.inputs


def test_data_that_changed_since_the_plan_are_refused_with_both_values(fakes: Path) -> None:
    plan = load_plan(CONFIG, [*RANDOM, "seeds=[0]"])
    before = annotations_of(plan)
    text = ANNOTATIONS.read_text("utf-8")
    ANNOTATIONS.write_text(text + "\n", encoding="utf-8")
    after = annotations_of(load_plan(CONFIG, RANDOM))
    (state,) = run(plan).values()
    assert state.status == "failed" and "\n" not in str(state.reason)
    assert f"my_coco.annotations.digest: planned '{before}', read '{after}'" in str(state.reason)
    assert not Path("ran.txt").exists()
    ANNOTATIONS.write_text(text, encoding="utf-8")
    (state,) = run(plan).values()
    assert state.status == "done"


def test_data_that_change_while_a_stage_runs_leave_nothing_to_resume(
    fakes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stage,) = load_plan(CONFIG, [*RANDOM, "seeds=[0]"]).stages
    prepare(stage)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    import fake_stages

    original, text = fake_stages.run_stage, ANNOTATIONS.read_text("utf-8")

    def edits_its_data(*arguments: object) -> dict[str, float]:
        ANNOTATIONS.write_text(text + "\n", encoding="utf-8")
        return original(*arguments)

    monkeypatch.setattr(fake_stages, "run_stage", edits_its_data)
    assert run_worker(stage.run_dir) == 1
    state = read_state(stage)
    assert state.status == "failed" and "what was made until then is in" in str(state.reason)
    assert not (stage.run_dir / "out.txt").exists()
    assert (stage.run_dir / "set-aside-1" / "out.txt").exists()
    monkeypatch.undo()


def test_an_input_of_another_signature_is_refused(fakes: Path) -> None:
    plan = load_plan(CONFIG, ONLY_A)
    pretrain, convert = plan.stages[:2]
    prepare(pretrain)
    assert run_worker(pretrain.run_dir.absolute()) == 0
    prepare(convert)
    manifest = pretrain.run_dir / "manifest.json"
    manifest.write_text(json.dumps(read_json(manifest) | {"signature": "f" * 16}), "utf-8")
    (pretrain.run_dir / "config.json").unlink()
    assert run_worker(convert.run_dir) == 1
    assert f"is of signature {'f' * 16}, wanted" in str(read_state(convert).reason)


def test_the_number_of_processes_is_part_of_a_pretraining(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = load_plan(CONFIG, [])
    four = load_plan(CONFIG, ["resources.pretrain={gpus: 2, nodes: 2}"])
    assert [
        one.signature == other.signature
        for one, other in zip(alone.stages, four.stages, strict=True)
    ] == [stage.backbone == "random" for stage in alone.stages]
    assert alone.stages[4].identity["world_size"] == 1 and alone.stages[4].kind == "pretrain"
    assert signatures("resources.default={cpus_per_gpu: 2}") == signatures()
    stage = four.stages[4]
    prepare(stage)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_worker(stage.run_dir) == 1
    assert "planned for 4 processes (resources.pretrain), started by 2" in str(
        read_state(stage).reason
    )


def test_labels_are_no_part_of_any_identity(project: Path) -> None:
    before = signatures()
    recipe = yaml.safe_load(Path("configs/a.yaml").read_text("utf-8"))
    recipe["method"], recipe["data"]["name"] = "another label", "my pictures"
    Path("configs/a.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    text = CONFIG.read_text("utf-8").replace("my_coco", "our_coco")
    CONFIG.write_text(text, encoding="utf-8")
    task = Path("configs/coco.yaml")
    task.write_text(task.read_text("utf-8").replace("my_coco", "our_coco"), encoding="utf-8")
    assert signatures() == before
    plan = load_plan(CONFIG, [])
    assert "our_coco" in plan.stages[0].settings["datasets"]
    (pretrain,) = (stage for stage in plan.stages if stage.name == "pretrain/a")
    assert pretrain.settings["data"]["name"] == "my pictures"
