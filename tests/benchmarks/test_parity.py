"""The parity command without any published code: comparisons, choices, child process, readers."""

import math
import runpy
import subprocess
from pathlib import Path

import pytest
import torch
import torchvision.transforms as T

from benchmarks.parity import command
from benchmarks.parity.child import recorded_permutations
from benchmarks.parity.command import main
from benchmarks.parity.comparison import (
    Row,
    compare_tensors,
    compare_values,
    failed,
    numbers,
    relative_difference,
    same_bytes,
    series,
    table,
)
from benchmarks.parity.configs import flat, our_config
from benchmarks.parity.conversion import write_checkpoint
from benchmarks.parity.detection import evaluated, flat_ap, register_pictures
from benchmarks.parity.draws import NUM_IMAGES, draw_pictures, drawn_detections
from benchmarks.parity.evaluation import drawn_features, our_evaluation, right
from benchmarks.parity.losses import CASES, Case, drawn_embeddings, our_loss, split_draws
from benchmarks.parity.peers import PEERS, PeerError, call, commit, path_fault, run_script
from benchmarks.parity.recipes import (
    ORDER,
    augmentation_facts,
    cw_rgp_commands,
    imagenet_commands,
    our_facts,
    w_mse_commands,
)
from benchmarks.parity.training import LOOPS, SCHEDULES, renamed, waiting_steps
from transfer.checkpoints import read
from transfer.datasets.check import task_faults
from transfer.datasets.findings import Needs
from transfer.detection.cli import read_config
from transfer.detection.evaluation import build_evaluator

LABEL = ("part", "things")


def test_equal_bytes_are_equal_whatever_they_mean() -> None:
    odd = torch.tensor([math.nan, math.inf, -0.0])
    assert same_bytes(odd, odd.clone()) and relative_difference(odd, odd.clone()) == 0
    assert not same_bytes(torch.zeros(2), -torch.zeros(2))
    assert relative_difference(torch.zeros(2), -torch.zeros(2)) == 0
    assert not same_bytes(torch.zeros(2), torch.zeros(2, dtype=torch.float64))


def test_a_difference_is_relative_to_the_largest_value() -> None:
    theirs = torch.tensor([4.0, 1.0], dtype=torch.float64)
    assert relative_difference(theirs, theirs + torch.tensor([0.0, 0.5])) == 0.125
    assert relative_difference(theirs, theirs[:1]) == math.inf
    assert relative_difference(theirs, torch.tensor([4.0, math.nan])) == math.inf
    assert relative_difference(torch.zeros(1), torch.ones(1)) == math.inf


def test_rows_of_tensors_equal_different_and_missing() -> None:
    theirs = numbers({"a": 1.0, "b": 2.0, "head": 3.0})
    row = compare_tensors(LABEL, theirs, dict(theirs))
    assert (row.number, row.equal, row.difference, row.agrees) == (3, 3, 0.0, True)

    ours = numbers({"a": 1.0, "b": 2.0 + 2e-9})
    row = compare_tensors(LABEL, theirs, ours, tolerance=1e-8, known={"head": "not needed"})
    assert (row.number, row.equal, row.agrees) == (2, 1, True)
    assert row.difference == pytest.approx(1e-9)
    assert row.notes == ("head only in theirs: not needed",)

    row = compare_tensors(LABEL, theirs, ours, tolerance=1e-10)
    assert not row.agrees
    assert row.faults == ("head only in theirs", "b differs by 1.0e-09")
    assert compare_tensors(LABEL, ours, theirs, tolerance=1).faults == ("head only in ours",)
    assert not compare_tensors(LABEL, {}, {}).agrees


def test_rows_of_settings_equal_different_and_explained() -> None:
    theirs, ours = {"a": (1, [2]), "b": 3, "c": 4}, {"a": [1, (2,)], "b": 5, "d": 6}
    row = compare_values(LABEL, theirs, ours, {"b": "on purpose"})
    assert (row.number, row.equal, row.agrees) == (4, 1, False)
    assert row.notes == ("b is 3 in theirs, 5 in ours: on purpose",)
    assert row.faults == (
        "c is 4 in theirs, 'not there' in ours",
        "d is 'not there' in theirs, 6 in ours",
    )
    assert compare_values(LABEL, {"a": 1}, {"a": 1}, {"a": "may differ"}).agrees
    assert not compare_values(LABEL, {}, {}, {}).agrees


def test_the_table_has_every_row_and_says_a_common_difference_once() -> None:
    rows = [Row("p", f"r{number}", 3, 2, 1e-9, 1e-8, notes=("why",)) for number in range(4)]
    text = table([*rows, failed("q", "no module named x")])
    assert "| p | r0 | 3 | 2 | 1.0e-09 | 1e-08 | agrees |" in text
    assert text.count("why") == 1 and "- p, r0 and 3 more rows: why" in text
    assert "- q, could not be compared: no module named x" in text
    assert text.count("DIFFERS") == 1
    many = table([Row("p", "r", faults=tuple(map(str, range(20))))])
    assert many.count("\n- ") == 13 and "and 8 more" in many


def checkout(folder: Path, name: str) -> Path:
    marker = folder / name / PEERS[name].marker
    marker.parent.mkdir(parents=True)
    marker.touch()
    return folder / name


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give at least one of --moco PATH, --cw-rgp PATH, --w-mse PATH"),
        (["--moco", "nowhere"], "--moco nowhere: has no detection/train_net.py, wanted a checkout"),
        (["--w-mse", "w-mse", "--cw-rgp", "w-mse"], "--cw-rgp w-mse: has no base/methods/cwrgp.py"),
        (["--w-mse", "w-mse", "--only", "detection"], "--only detection needs --moco PATH"),
    ],
)
def test_a_wrong_choice_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkout(tmp_path, "w-mse")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith(f"parity: {message}")


def test_the_exit_code_says_whether_all_rows_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def rows(name: str, paths: dict[str, Path]) -> list[Row]:
        asked.append(name)
        return [Row(name, "things", 1, 1, tolerance=0.0, difference=float(name == "recipes"))]

    monkeypatch.setattr(command, "part_rows", rows)
    path = str(checkout(tmp_path, "w-mse"))
    assert main(["--w-mse", path, "--only", "losses", "evaluation"]) == 0
    assert asked == ["losses", "evaluation"]
    assert main(["--w-mse", path]) == 1
    assert asked[2:] == ["losses", "training", "recipes", "evaluation"]
    said = capsys.readouterr().out
    assert "htdt/self-supervised: unknown commit" in said and "this project: " in said


def test_help_warns_of_code_that_is_executed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["parity", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_module("benchmarks.parity", run_name="__main__")
    assert "executes the code of the checkouts" in capsys.readouterr().out


def test_a_part_that_fails_is_a_row(tmp_path: Path) -> None:
    (row,) = command.part_rows("recipes", {"w-mse": checkout(tmp_path, "w-mse")})
    assert not row.agrees and "README.md" in row.faults[0]


def test_commit_is_that_of_the_folder_itself(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    (tmp_path / "inner").mkdir()
    (tmp_path / "file").touch()
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert commit(tmp_path) == head.stdout[:7]
    assert commit(tmp_path / "inner") == "unknown commit"
    (tmp_path / "file").write_text("changed")
    assert commit(tmp_path) == f"{head.stdout[:7]} with changes"


def test_a_child_imports_from_the_folder_and_its_failure_is_one_line(tmp_path: Path) -> None:
    code = "import wandb, tqdm, torch\ndef doubled(x):\n    wandb.init(project='x')\n"
    (tmp_path / "methods.py").write_text(code + "    return [2 * one.cuda() for one in x]\n")
    (answer,) = call(tmp_path, "methods:doubled", [torch.ones(2)])
    assert torch.equal(answer, torch.full((2,), 2.0))
    with pytest.raises(PeerError, match=r"^AttributeError: .*'missing'"):
        call(tmp_path, "methods:missing", [])
    assert [path.name for path in tmp_path.iterdir()] == ["methods.py"]  # nothing is written there


def test_a_script_that_fails_says_its_last_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.exit('first\\nlast ' + sys.argv[1])\n")
    with pytest.raises(PeerError, match=f"^last {tmp_path}$"):
        run_script(script, tmp_path)


def test_paths_are_known_by_a_file(tmp_path: Path) -> None:
    assert all(path_fault(name, checkout(tmp_path, name)) is None for name in PEERS)
    assert "facebookresearch/moco" in str(path_fault("moco", tmp_path / "w-mse"))


def test_draws_are_recorded_and_split_as_the_loops_draw_them() -> None:
    torch.manual_seed(0)
    with recorded_permutations() as drawn:
        for _ in range(2):  # iterations
            torch.randperm(6)
            for _ in range(3 * 2):  # sub-batches, views
                torch.randperm(4)
    permutation, partition = split_draws(drawn, (2, 6, 4), 2, 2)
    assert permutation.shape == (2, 6) and partition.shape == (2, 3, 2, 4)
    assert torch.equal(permutation[1], drawn[7]) and torch.equal(partition[1, 2, 0], drawn[12])
    _, none = split_draws([drawn[0], drawn[7]], (2, 6, 4), 2, 2)
    assert len(none) == 0
    assert torch.randperm(2).shape == (2,) and len(drawn) == 14


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_our_side_of_every_loss_case_is_finite(case: Case) -> None:
    V, N, D = case.shape
    drawn = []
    for _ in range(case.iterations):
        drawn.append(torch.randperm(N))
        if case.peer == "cw-rgp":
            drawn += [torch.randperm(D) for _ in range(N // case.sub_batch * V)]
    value, gradient = our_loss(case, drawn_embeddings(case), drawn)
    assert value.dtype == torch.float64 and gradient.shape == case.shape
    assert bool(value.isfinite()) and bool(gradient.isfinite().all()) and gradient.abs().sum() > 0


def test_every_loop_has_a_config_of_ours_and_its_length() -> None:
    for loop in (*LOOPS, *SCHEDULES):
        words = loop.arguments.split()
        config = loop.our_config
        assert int(words[words.index("--num_samples") + 1]) == config.num_views
        assert loop.length.total_steps == config.epochs * loop.steps_per_epoch
    waiting = [waiting_steps(loop.our_config, loop.length) for loop in SCHEDULES]
    assert waiting == [range(0), range(0), range(0), range(500, 540)]
    assert set(renamed({"model.0.weight": 1, "head.1.bias": 2})) == {
        "encoder.0.weight",
        "projector.1.bias",
    }


def test_commands_are_read_as_they_are_published(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "README.md").write_text(
        "```\npython -m train --help\npython -m train --dataset stl10 --lr 2e-3\n"
        "python -m train --dataset stl10 --method byol\n```\n"
    )
    (tmp_path / "scripts" / "base.sh").write_text("# CIFAR\npython base/train.py --bs 256\n")
    (tmp_path / "scripts" / "ImageNet.sh").write_text(
        "#train\npython ImageNet/train.py \\\n  --md \\\n  --imagenet_path [your folder] \\\n"
        "  --cov_w 0.01 \\ #optional, the weight\n  --cov_stop 5 \\ #optional\n\n\n#next\n"
        "python ImageNet/lincls.py \\\n  --md\n"
    )
    assert w_mse_commands(tmp_path) == [["--dataset", "stl10", "--lr", "2e-3"]]
    assert cw_rgp_commands(tmp_path) == [["--bs", "256"]]
    assert imagenet_commands(tmp_path) == [
        ["--imagenet_path", ".", "--cov_w", "0.01", "--cov_stop", "5"]
    ]


def test_transforms_are_described_as_our_recipes_are() -> None:
    found = augmentation_facts([
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        T.RandomGrayscale(p=0.1),
        T.RandomResizedCrop(
            32, (0.2, 1.0), (0.75, 4 / 3), interpolation=T.InterpolationMode.BICUBIC
        ),
        T.RandomHorizontalFlip(p=0.5),
        T.Compose([T.ToTensor(), T.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))]),
    ])  # fmt: skip
    assert found[ORDER] == ["jitter", "grayscale", "crop", "flip"]
    ours = our_facts("w_mse_4_cifar10")
    row = compare_values(LABEL, found, {key: ours[key] for key in found}, {})
    assert row.agrees and row.number == 11
    assert our_facts("cw_rgp_4_imagenet")[ORDER][:2] == ["crop", "flip"]
    assert "blur" in our_facts("cw_rgp_4_imagenet") and "blur" not in ours


def test_the_pictures_are_sound_in_both_layouts(tmp_path: Path) -> None:
    for data in draw_pictures(tmp_path):
        assert task_faults({"x": (data, Needs(True, data.format == "coco"))}) == []
    detections = drawn_detections()
    assert len(detections) == NUM_IMAGES
    assert all(one.pred_masks.flatten(1).any(1).all() for one in detections)


def test_the_evaluators_have_something_to_say_of_the_drawn_detections(tmp_path: Path) -> None:
    coco, voc = draw_pictures(tmp_path)
    pictures = {"coco": coco.model_dump(mode="json"), "voc": voc.model_dump(mode="json")}
    for name, masks in (("parity_coco", True), ("parity_voc", False)):
        register_pictures({"name": name, "pictures": pictures})
        evaluator = build_evaluator(name, tmp_path / name, masks)
        values = flat_ap(evaluated(evaluator, name, masks))
        assert {"bbox/AP", "bbox/AP50", "bbox/AP-two"} <= values.keys()
        assert ("segm/AP" in values) == masks
        assert all(5 < value < 95 for key, value in values.items() if key.endswith(("AP", "AP50")))


def test_our_evaluation_is_neither_chance_nor_perfect() -> None:
    answer = our_evaluation(drawn_features())
    assert len(answer["orders"]) == 50
    assert all(0.3 < value < 1 for part in ("knn", "linear") for value in answer[part].values())
    assert torch.get_default_dtype() == torch.float32
    assert answer["classifier"]["weight"].dtype == torch.float64
    assert not torch.equal(answer["classifier"]["weight"], answer["initial"]["weight"])
    assert list(right({"k 1": 0.5})) == ["k 1"] and float(right({"k 1": 0.5})["k 1"]) == 250


def test_the_checkpoint_is_taken_for_mocos(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "moco.pth.tar")
    backbone = read.read_backbone(tmp_path / "moco.pth.tar")
    assert backbone.format == "moco" and len(backbone.state_dict) == 318


def test_configs_are_flattened_to_their_keys() -> None:
    cfg = dict(flat(read_config(str(our_config("voc_faster_rcnn_r50_c4_24k")), [])))
    assert cfg["MODEL.ROI_HEADS.NUM_CLASSES"] == 20 and cfg["SOLVER.MAX_ITER"] == 24000


def test_series_names_steps() -> None:
    assert list(series("loss", [1.0, 2.0])) == ["loss 0", "loss 1"]
