"""`init`: what is written can be planned, and what cannot be is refused in one line each."""

import itertools
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from pipeline.commands.init import main
from pipeline.commands.main import Options, execute
from pipeline.config.schema import PipelineConfig
from pipeline.plan.build import load_plan
from pretrain.config.pretrain import PretrainConfig
from pretrain.config.probe import ProbeConfig


@pytest.fixture
def fakes(fakes: Path, in_process: None) -> Path:
    """Fake stages whose check is this process's; the real one's is a child's."""
    return fakes


def init(*arguments: str) -> int:
    return main(list(arguments))


ROOT = Path(__file__).resolve().parents[3]
DATA = ("--data", "my_voc=voc:data/voc:all")
RANDOM = ("--backbone", "random", "--task", "v=configs/voc.yaml", *DATA)


def test_flags_give_a_config_that_plans(fakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fakes / "voc.yaml").write_text(
        "_BASE_: configs/voc.yaml\nDATASETS: {TRAIN: [set], TEST: [set]}\n", encoding="utf-8"
    )
    arguments = ["--backbone", "random", "--backbone", "ours=configs/a.yaml", "--seeds", "3,5"]
    arguments += ["--task", "voc=voc.yaml"]
    assert init("new/mine.yaml", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()  # the paths were right, seen from new/
    assert "unknown data set 'set'" in line and "an entry under `datasets:`" in line
    assert "`set: {format: coco, annotations: FILE.json, images: FOLDER}`" in line
    assert "init --data set=coco:FILE.json:FOLDER" in line and not Path("new").exists()
    assert init("new/mine.yaml", *arguments, "--data", "set=voc:data/voc:all") == 0
    assert "new/mine.yaml: written" in capsys.readouterr().out
    text = Path("new/mine.yaml").read_text("utf-8")
    assert (
        "# What is compared" in text
        and text.startswith("# yaml-language-server: $schema=")
        and "resources" not in text
    )
    plan = load_plan(Path("new/mine.yaml"), [])
    assert plan.config.seeds == (3, 5) and plan.config.name == "mine"
    assert [stage.name for stage in plan.stages][-1] == "finetune/ours--voc--seed5"
    names = sorted(path.name for path in Path("new").iterdir())
    assert names == ["mine.yaml", "pipeline.schema.json"]


def test_sets_of_ones_own_and_their_class_names(fakes: Path) -> None:
    voc = Path("data/voc")
    text = (voc / "Annotations" / "001.xml").read_text("utf-8")
    changed = text.replace("<name>one", "<name>zebra &amp; foal").replace(
        "</object>", "<part><name>head</name></part></object><object><name>cat</name></object>"
    )
    (voc / "Annotations" / "001.xml").write_text(changed, encoding="utf-8")
    (voc / "ImageSets" / "Main" / "two.txt").write_text("000\n002\n", encoding="utf-8")
    coco = "my_coco=coco:data/coco/annotations.json:data/coco/val"
    assert init("n.yaml", *RANDOM, "--data", "part=voc:data/voc:two", "--data", coco) == 0
    classes = ["cat", "one", "zebra & foal"]  # VOC's first, in both sets the same
    assert yaml.safe_load(Path("n.yaml").read_text("utf-8"))["datasets"] == {
        "my_voc": {"format": "voc", "root": "data/voc", "split": "all", "class_names": classes},
        "part": {"format": "voc", "root": "data/voc", "split": "two", "class_names": classes},
        "my_coco": {
            "format": "coco", "annotations": "data/coco/annotations.json", "images": "data/coco/val"
        },
    }  # fmt: skip


def test_classes_of_vocs_layout_are_those_of_the_set_beside_it(fakes: Path) -> None:
    """By their ids, also one that occurs in no annotation; else the two are not of one detector."""
    path = Path("data/coco/annotations.json")
    content = json.loads(path.read_text("utf-8"))
    content["categories"] = [{"id": 7, "name": "one"}, {"id": 2, "name": "zebra"}]
    for entry in content["annotations"]:
        entry["category_id"] = 7
    path.write_text(json.dumps(content), encoding="utf-8")
    both = (*DATA, "--data", "my_coco=coco:data/coco/annotations.json:data/coco/val")
    Path("both.yaml").write_text(
        "_BASE_: configs/voc.yaml\nDATASETS: {TRAIN: [my_coco], TEST: [my_voc]}", encoding="utf-8"
    )
    for target, task in (("n.yaml", "both.yaml"), ("m.yaml", "configs/voc.yaml")):
        assert init(target, "--backbone", "random", "--task", f"v={task}", *both) == 0
    of_both, alone = (yaml.safe_load(Path(f"{n}.yaml").read_text("utf-8")) for n in "nm")
    assert of_both["datasets"]["my_voc"]["class_names"] == ["zebra", "one"]
    assert alone["datasets"]["my_voc"]["class_names"] == ["one"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("my_voc", "data 'my_voc': wanted NAME=coco:ANNOTATIONS:IMAGES or NAME=voc:ROOT:SPLIT"),
        ("my_voc=yolo:a:b", "wanted NAME=coco:ANNOTATIONS:IMAGES"),
        ("my_voc=coco:a", "wanted NAME=coco:ANNOTATIONS:IMAGES"),
        ("my_voc=voc:data/voc:", "wanted NAME=coco:ANNOTATIONS:IMAGES"),
        ("my_voc=voc:data/voc:absent", "absent.txt: no such file; data set my_voc wants VOC's"),
        ("my_voc=coco:absent.json:data/coco/val", "absent.json: no such file; data set my_voc"),
        (
            "my_voc=coco:data/coco/val:data/coco/annotations.json",
            "data/coco/val: is a folder; data set my_voc wants COCO's annotation file there",
        ),
        (
            "my_voc=coco:data/coco/annotations.json:data/coco/annotations.json",
            "data/coco/annotations.json: is a file; data set my_voc is expected there",
        ),
        ("a b=voc:data/voc:all", "datasets.a b"),
    ],
)
def test_a_set_that_cannot_be_read_is_refused(
    fakes: Path, capsys: pytest.CaptureFixture[str], data: str, expected: str
) -> None:
    arguments = ["--backbone", "random", "--task", "v=configs/voc.yaml", "--data", data]
    assert init("n.yaml", *arguments) == 2
    error = capsys.readouterr().err
    assert expected in error and ".tmp" not in error and "Traceback" not in error
    assert not Path("n.yaml").exists()
    assert init("n.yaml", *RANDOM, *DATA) == 2
    assert "data my_voc: named twice" in capsys.readouterr().err


BACKBONES = {
    "random": ["--backbone", "random"],
    "recipe": ["--backbone", "ours=configs/a.yaml"],
    "checkpoint": ["--backbone", "theirs=theirs.pth", "--backbone", "random"],
    "absent": ["--backbone", "theirs=absent.pth"],
    "twice": ["--backbone", "random", "--backbone", "random"],
}
SETS = {
    "none": [],
    "voc": [*DATA],
    "both": [*DATA, "--data", "my_coco=coco:data/coco/annotations.json:data/coco/val"],
}
Output = Callable[[], Any]
SEEDS = {"default": [], "given": ["--seeds", "0,4"]}
EXECUTORS = {"local": [], "slurm": ["--executor", "slurm"]}


@pytest.fixture
def project_and_output(fakes: Path, capsys: pytest.CaptureFixture[str]) -> Output:
    return capsys.readouterr


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize(("task", "sets"), [*itertools.product(("voc", "coco"), SETS)])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_combination_gives_a_config_that_plan_accepts_or_is_refused(
    project_and_output: Output, backbone: str, task: str, sets: str, seeds: str, executor: str
) -> None:
    Path("theirs.pth").touch()
    arguments = ["--task", f"t=configs/{task}.yaml", *BACKBONES[backbone], *SETS[sets]]
    code = init("made in/n.yaml", *arguments, *SEEDS[seeds], *EXECUTORS[executor])
    answer = project_and_output()
    if backbone in ("absent", "twice") or sets == "none" or (task, sets) == ("coco", "voc"):
        assert (code, answer.out, Path("made in").exists()) == (2, "", False)
        return
    assert code == 0, answer.err
    _, _, command = answer.out.strip().partition("made in/n.yaml: written, and `plan` accepts it; ")
    header = Path("made in/n.yaml").read_text("utf-8").splitlines()[2:4]
    commands = [shlex.split(line[1:], comments=True) for line in header]
    commands.append(shlex.split(command.removeprefix("next: ")))
    target = ["--config-file", "made in/n.yaml", *EXECUTORS[executor]]
    assert [words[:2] for words in commands] == [["python", "tools/run_pipeline.py"]] * 3
    assert [words[2:] for words in commands] == [[w, *target] for w in ("plan", "run", "plan")]
    assert execute("plan", Path(target[1]), [], Options(executor=executor)) == 0


@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_what_the_stages_own_check_refuses_is_not_written(fakes: Path, executor: str) -> None:
    Path("check.txt").write_text("MODEL.X: detectron2 has no such key", encoding="utf-8")
    assert init("made/n.yaml", *RANDOM, "--executor", executor) == 2
    assert not Path("made").exists()


@pytest.mark.slow
def test_the_check_is_the_real_one(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copytree("data/voc", "data/other")
    for number, path in enumerate(sorted(Path("data/other/JPEGImages").iterdir())):
        Image.new("RGB", (64, 48), (10, 70 * number, 7)).save(path)
    task = {
        "_BASE_": str(ROOT / "configs" / "transfer" / "digits_base.yaml"),
        "DATASETS": {"TRAIN": ["my_voc"], "TEST": ["other"]},
        "MODEL": {"ROI_HEADS": {"NUM_CLASSES": 1}},
    }
    arguments = ["--backbone", "random", "--task", "t=t.yaml", *DATA]
    arguments += ["--data", "other=voc:data/other:all"]
    Path("t.yaml").write_text(yaml.safe_dump(task | {"SOLVERR": {}}), encoding="utf-8")
    assert init("n.yaml", *arguments) == 2
    assert "t.yaml: SOLVERR: detectron2 has no such key" in capsys.readouterr().err
    Path("t.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    assert init("n.yaml", *arguments) == 0, capsys.readouterr().err
    assert execute("plan", Path("n.yaml"), []) == 0


def test_slurm_gets_resources_that_every_pretraining_can_use(fakes: Path) -> None:
    assert init("s.yaml", *RANDOM, "--executor", "slurm") == 0
    text = Path("s.yaml").read_text("utf-8")
    assert "--executor slurm" in text and "timeout_min: 1440" in text
    assert yaml.safe_load(text)["resources"]["pretrain"]["gpus"] == 8
    ours = ["--backbone", "ours=configs/a.yaml"]  # 8 images in sub-batches of 8
    assert init("t.yaml", *RANDOM, *ours, "--executor", "slurm") == 0
    resources = yaml.safe_load(Path("t.yaml").read_text("utf-8"))["resources"]
    plan = load_plan(Path("t.yaml"), [])
    assert plan.config.resources.pretrain.gpus == resources["pretrain"]["gpus"] <= 8


def test_every_fault_at_once_and_nothing_written(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--backbone", "a b=absent.pth", "--task", "v=absent.yaml", "--seeds", "0,0"]
    assert init("n.yaml", *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any("absent.pth: no such file (backbone a b)" in line for line in lines)
    assert any("absent.yaml: no such file (task v)" in line for line in lines)
    assert any("backbones.0.name" in line for line in lines)
    assert not Path("n.yaml").exists()


def test_configs_of_another_kind_are_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = ["--backbone", "ours=configs/voc.yaml", "--task", "v=configs/a.yaml"]
    assert init("n.yaml", *swapped) == 2
    error = capsys.readouterr().err
    assert "configs/a.yaml: is a pretraining config, wanted a detectron2 config; tools/" in error
    assert "configs/voc.yaml: is a detectron2 config, wanted a pretraining config; tools/" in error
    assert not Path("n.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--backbone", "moco.pth", "--task", "v=configs/voc.yaml"], "wanted NAME=PATH"),
        (["--backbone", "random"], "--task is missing, and there is no terminal"),
        (
            ["--backbone", "random", "--task", "v=configs/voc.yaml", "--seeds", "x"],
            "wanted numbers",
        ),
    ],
)
def test_a_flag_that_cannot_be_read(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert init("n.yaml", *arguments) == 2
    error = capsys.readouterr().err
    assert expected in error and len(error.splitlines()) == 1


def test_an_existing_file_is_kept(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("n.yaml").write_text("mine", encoding="utf-8")
    assert init("n.yaml", "--backbone", "random", "--task", "v=configs/voc.yaml") == 2
    assert "n.yaml: exists" in capsys.readouterr().err
    assert Path("n.yaml").read_text("utf-8") == "mine"


def test_questions_are_asked_at_a_terminal(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["random", "v=configs/voc.yaml", "", "slurm"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert init("q.yaml", *DATA) == 0
    assert "seeds: [0, 1, 2]" in Path("q.yaml").read_text("utf-8")


def test_sets_that_nobody_knows_are_asked_for(
    fakes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions: list[str] = []
    answers = iter(["random", "v=configs/voc.yaml", "", "", "voc:data/voc:all"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: questions.append(text) or next(answers))
    assert init("q.yaml") == 0
    assert questions[-1] == "data set my_voc, coco:ANNOTATIONS:IMAGES or voc:ROOT:SPLIT: "
    assert list(load_plan(Path("q.yaml"), []).config.datasets) == ["my_voc"]
    answers = iter(["random", "v=configs/voc.yaml", "", "", ""])
    assert init("r.yaml") == 2
    assert "unknown data set 'my_voc'" in capsys.readouterr().err


def test_an_answer_that_is_no_executor_is_refused(
    fakes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter(["random", "v=configs/voc.yaml", "", "Slurm"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert init("q.yaml", *DATA) == 2
    assert "unknown executor 'Slurm'; did you mean 'slurm'?" in capsys.readouterr().err
    assert not Path("q.yaml").exists()


def test_schemas_for_editors_are_those_of_the_configs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init("--schemas", str(tmp_path)) == 0
    names = [f"{name}.schema.json" for name in ("pipeline", "pretrain", "probe")]
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in names]
    for name, model in zip(names, (PipelineConfig, PretrainConfig, ProbeConfig), strict=True):
        schema = json.loads((tmp_path / name).read_text("utf-8"))
        assert set(schema["properties"]) == {*model.model_fields, "_BASE_"}
        assert schema["additionalProperties"] is False and "required" not in schema
        assert not any("required" in part for part in schema["$defs"].values())


def test_a_config_points_an_editor_at_a_schema_that_is_there(fakes: Path) -> None:
    assert init("new/n.yaml", *RANDOM) == 0
    first = Path("new/n.yaml").read_text("utf-8").splitlines()[0]
    schema = Path("new") / first.removeprefix("# yaml-language-server: $schema=")
    properties = json.loads(schema.read_text("utf-8"))["properties"]
    assert {"backbones", "tasks", "resources", "_BASE_"} <= set(properties)
