"""Conversion against detectron2's own loader, with negative controls that must fail."""

import doctest
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.scripts import load_script
from tests.transfer.published import save_backbone, source_state
from transfer import convert
from transfer.checkpoints.read import read_backbone
from transfer.config.convert import StatedInput
from transfer.convert import convert_checkpoint
from transfer.resnet import to_detectron2

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("arch", "num_entries"), [("resnet18", 120), ("resnet50", 318)])
def test_features_are_equal_and_the_companion_says_so(
    tmp_path: Path, arch: str, num_entries: int
) -> None:
    source = save_backbone(tmp_path / "backbone.pth", arch)
    target = tmp_path / "out" / "weights.pkl"
    report = convert_checkpoint(source, target)
    assert 0 <= report.largest_feature_difference < 1e-5
    assert (report.arch, report.num_entries) == (arch, num_entries)
    assert report.format == "whitening-transfer"
    with target.open("rb") as file:
        content = pickle.load(file)
    assert content["matching_heuristics"] is True and "__author__" in content
    state = source_state(arch)
    assert len(content["model"]) == num_entries
    for name, value in state.items():
        assert torch.equal(torch.as_tensor(content["model"][to_detectron2(name)]), value)
    companion = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
    assert companion["detectron2"]["MODEL.PIXEL_MEAN"] == [1.0, 2.0, 3.0]
    assert companion["detectron2"]["MODEL.RESNETS.DEPTH"] == int(arch.removeprefix("resnet"))
    assert sorted(path.name for path in target.parent.iterdir()) == ["weights.json", "weights.pkl"]


def test_the_stage_also_writes_the_weights_under_torchvisions_names(tmp_path: Path) -> None:
    source = save_backbone(tmp_path / "source", "resnet18")
    settings = {"format": None, "encoder": None, "checkpoint": str(source)}
    (tmp_path / "own").mkdir()
    convert.run_stage(settings, {}, tmp_path / "own")
    names = sorted(path.name for path in (tmp_path / "own").iterdir())
    assert names == ["backbone.json", "backbone.pkl", "backbone.pth"]
    plain = torch.load(tmp_path / "own" / "backbone.pth", weights_only=True)
    wanted = torch.load(source, weights_only=True)
    state, wanted_state = plain.pop("state_dict"), wanted.pop("state_dict")
    assert plain == wanted and list(state) == list(wanted_state)
    assert all(torch.equal(state[name], wanted_state[name]) for name in state)
    torch.save({"state_dict": {f"module.encoder_q.{k}": v for k, v in state.items()}}, source)
    convert.run_stage(settings, {}, tmp_path / "own")
    plain = torch.load(tmp_path / "own" / "backbone.pth", weights_only=True)
    assert (plain["arch"], plain["method"]) == ("resnet18", "moco")
    assert plain["input"]["pixel_mean"] == [123.675, 116.28, 103.53]
    assert read_backbone(tmp_path / "own" / "backbone.pth").format == "whitening-transfer"


def test_an_input_that_the_user_states_goes_over_what_the_family_says(tmp_path: Path) -> None:
    source = tmp_path / "theirs.pth"
    torch.save(source_state("resnet50"), source)
    stated = {"order": "BGR", "std": [1, 1, 1], "stride_in_1x1": True}
    settings = {"format": None, "encoder": None, "checkpoint": str(source), "input": stated}
    assert convert.check_stage(settings) == []
    demands = convert.demanded_keys(settings)
    assert demands["INPUT.FORMAT"] == "BGR" and demands["MODEL.PIXEL_STD"] == [1.0, 1.0, 1.0]
    assert demands["MODEL.PIXEL_MEAN"] == [103.53, 116.28, 123.675]  # the family's, blue first
    assert demands["MODEL.RESNETS.STRIDE_IN_1X1"] is True
    (tmp_path / "out").mkdir()
    convert.run_stage(settings, {}, tmp_path / "out")
    companion = json.loads((tmp_path / "out" / "backbone.json").read_text("utf-8"))
    assert companion["detectron2"] == demands
    assert companion["notes"][-1] == (
        "input as the user states it: order BGR, std [1.0, 1.0, 1.0], stride_in_1x1 True"
    )
    plain = torch.load(tmp_path / "out" / "backbone.pth", weights_only=True)
    assert plain["arch"] == "resnet50_stride_in_1x1" and plain["input"]["format"] == "BGR"
    without = convert.demanded_keys(settings | {"input": None})
    assert (without["INPUT.FORMAT"], without["MODEL.RESNETS.STRIDE_IN_1X1"]) == ("RGB", False)
    only_mean = convert.demanded_keys(settings | {"input": {"mean": [1, 128, 128]}})
    changed = {key for key in without if only_mean[key] != without[key]}
    assert changed == {"MODEL.PIXEL_MEAN"} and only_mean["MODEL.PIXEL_MEAN"] == [1.0, 128.0, 128.0]


def test_a_stride_that_no_layer_has_cannot_be_stated(tmp_path: Path) -> None:
    source = save_backbone(tmp_path / "theirs.pth", "resnet18")
    settings = {"format": None, "encoder": None, "checkpoint": str(source)}
    (line,) = convert.check_stage(settings | {"input": {"stride_in_1x1": True}})
    assert line.startswith(f"{source}: input.stride_in_1x1 is stated, but resnet18 has no 1x1")


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, "states nothing; give order, mean, std or stride_in_1x1"),
        ({"mean": [0.485, 0.456, 0.406]}, "look like those of pixels from 0 to 1"),
        ({"mean": [123.7, 116.3, 103.5], "std": [0.2, 0.2, 0.2]}, "of pixels from 0 to 1; wanted"),
        ({"std": [1, 0, 1]}, r"std is \[1.0, 0.0, 1.0\], wanted three numbers above 0"),
        ({"order": "GBR"}, "'RGB' or 'BGR'"),
        ({"stride_in_1x1": "no"}, "valid boolean"),
        ({"mean": [1, 2]}, "mean"),
    ],
)
def test_an_input_that_cannot_be_meant_is_refused(stated: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        StatedInput.model_validate(stated)
    StatedInput.model_validate({"mean": [0, 0, 0], "std": [1, 1, 1]})  # fed from 0 to 255 as it is


class Hostile:
    """Runs a command when it is unpickled by an ordinary unpickler."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch owned",)


def test_bad_files_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = source_state("resnet18")
    nan = {name: value.clone() for name, value in state.items()}
    nan["layer2.0.conv1.weight"][0] = float("nan")
    cases: dict[str, tuple[object, str]] = {
        "hostile.pth": (Hostile(), "cannot|can be read safely"),
        "empty.pth": (b"", "can be read safely"),
        "text.pth": (b"hello", "can be read safely"),
        "list.pth": ([1, 2], "holds a list"),
        "nothing.pth": ({"epoch": 3}, "no tensors"),
        "missing.pth": (
            {name: v for name, v in state.items() if name != "layer3.0.bn1.weight"},
            r"nearest is resnet18: 1 missing \['layer3.0.bn1.weight'\]",
        ),
        "nan.pth": (nan, "1 tensors hold NaN or infinity, first layer2.0.conv1.weight"),
    }
    for name, (content, expected) in cases.items():
        if isinstance(content, bytes):
            Path(name).write_bytes(content)
        else:
            torch.save(content, name)
        with pytest.raises(ValueError, match=expected) as caught:
            convert_checkpoint(Path(name), Path("out.pkl"))
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("owned").exists() and not Path("out.pkl").exists()
    with pytest.raises(ValueError, match="no such checkpoint"):
        convert_checkpoint(Path("absent.pth"), Path("out.pkl"))
    with pytest.raises(ValueError, match=r"ending in \.pkl"):
        convert_checkpoint(Path("nan.pth"), Path("out.pth"))


def test_the_companion_overwrites_neither_the_input_nor_a_strange_file(tmp_path: Path) -> None:
    source = save_backbone(tmp_path / "weights.json", "resnet18")
    whole = source.read_bytes()
    with pytest.raises(ValueError, match=r"weights\.json: is a folder or INPUT itself"):
        convert_checkpoint(source, tmp_path / "weights.pkl")
    assert source.read_bytes() == whole
    mine = tmp_path / "out.json"
    for text in ("mine", '{"sha256": "mine"}', "[" * 100_000):
        mine.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"out\.json: is there and is no companion"):
            convert_checkpoint(source, tmp_path / "out.pkl")
        assert mine.read_text(encoding="utf-8") == text
    assert not (tmp_path / "out.pkl").exists()


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    source = save_backbone(tmp_path / "in", "resnet18")
    for place in ("in", "in/sub"):
        with pytest.raises(ValueError, match=r"/in: is a file, wanted a folder to write OUTPUT"):
            convert_checkpoint(source, tmp_path / place / "out.pkl")


def test_what_a_killed_run_left_does_not_disturb_the_next(tmp_path: Path) -> None:
    source, target = save_backbone(tmp_path / "in", "resnet18"), tmp_path / "out.pkl"
    for pid in (os.getpid(), 1):
        for suffix in ("pkl", "json"):
            (tmp_path / f".out.{pid}.tmp.{suffix}").write_text("half", encoding="utf-8")
    report = convert_checkpoint(source, target)
    assert hashlib.sha256(target.read_bytes()).hexdigest() == report.output_sha256
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".out.1.tmp.json", ".out.1.tmp.pkl", "in", "out.json", "out.pkl"]


def test_an_older_output_stays_until_its_replacement_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = save_backbone(tmp_path / "backbone.pth", "resnet18"), tmp_path / "out.pkl"
    report = convert_checkpoint(source, target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    assert report.output_sha256 == digest
    assert json.loads(target.with_suffix(".json").read_text("utf-8"))["output_sha256"] == digest
    before = target.read_bytes(), target.with_suffix(".json").read_bytes()
    monkeypatch.setattr(convert, "MAX_RELATIVE_DIFFERENCE", -1.0)
    with pytest.raises(ValueError, match="nothing was written"):
        convert_checkpoint(source, target)
    assert (target.read_bytes(), target.with_suffix(".json").read_bytes()) == before
    monkeypatch.undo()

    def stop(self: Path, other: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(OSError, match="no space"):
        convert_checkpoint(source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone.pth", "out.json"]


def test_the_example_in_the_docstring() -> None:
    failed, attempted = doctest.testmod(convert)
    assert failed == 0 and attempted > 2


def test_what_is_refused_needs_neither_torch_nor_detectron2(tmp_path: Path) -> None:
    (tmp_path / "nonsense.pth").write_text("hello\n", encoding="utf-8")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    code = (
        "import runpy, sys\n"
        "sys.modules.update(torch=None, detectron2=None)\n"
        "runpy.run_path('tools/convert_to_detectron2.py', run_name='__main__')"
    )
    for name, reason in (("nonsense.pth", "a text file that starts"), ("empty.pth", "no tensors")):
        command = [sys.executable, "-c", code, str(tmp_path / name), str(tmp_path / "out.pkl")]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ran.returncode == 2 and reason in ran.stderr, ran.stderr
        assert ran.stderr.count("\n") == 1 and len(ran.stderr) <= 400


def test_a_transformers_folder_is_converted_and_its_shards_enter_the_sha256(tmp_path: Path) -> None:
    state, folder = source_state("resnet18"), tmp_path / "folder"
    folder.mkdir()
    where = {name: f"model-0000{1 + index % 2}.safetensors" for index, name in enumerate(state)}
    for file in set(where.values()):
        save_file({n: v.contiguous() for n, v in state.items() if where[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}), encoding="utf-8")
    report = convert_checkpoint(folder, tmp_path / "out.pkl")
    assert (report.arch, report.container) == ("resnet18", "safetensors, 2 shards")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest()
               for path in (index, *sorted(folder.glob("*.safetensors")))]  # fmt: skip
    assert report.sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()


command = load_script("convert_to_detectron2")


def test_the_command_line_states_the_input_and_the_companion_holds_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "theirs.pth", tmp_path / "out.pkl"
    torch.save(source_state("resnet50"), source)
    fed = ("--input-order", "bgr", "--pixel-std", "1", "1", "1", "--stride-in-1x1")
    assert command.main([str(source), str(target), *fed]) == 0
    keys = json.loads(target.with_suffix(".json").read_text("utf-8"))["detectron2"]
    assert keys["MODEL.PIXEL_MEAN"] == [103.53, 116.28, 123.675] and keys["INPUT.FORMAT"] == "BGR"
    assert keys["MODEL.PIXEL_STD"] == [1.0] * 3 and keys["MODEL.RESNETS.STRIDE_IN_1X1"] is True
    assert "note: input as the user states it: order BGR" in capsys.readouterr().out
    assert command.main([str(source), str(target), "--pixel-std", "0", "1", "1"]) == 2
    line = capsys.readouterr().err
    assert "std is [0.0, 1.0, 1.0], wanted three numbers above 0" in line and line.count("\n") == 1
    assert command.main([str(source), str(target), "--pixel-mean", "1", "nan", "1"]) == 2
    line = capsys.readouterr().err
    assert line == "convert_to_detectron2: mean.1: Input should be a finite number\n"


def test_detectron2s_own_pickles_are_converted_and_a_companion_is_believed(tmp_path: Path) -> None:
    source, first, second = (tmp_path / name for name in ("in.pth", "first.pkl", "second.pkl"))
    state = source_state("resnet50")
    torch.save({"state_dict": {f"encoder_q.{k}": v for k, v in state.items()}}, source)
    stated = StatedInput(order="BGR", mean=(1, 2, 3), stride_in_1x1=True)
    before = convert_checkpoint(source, first, stated=stated)
    after = convert_checkpoint(first, second)
    assert after.detectron2 == before.detectron2 and after.method == before.method == "moco"
    models = [pickle.loads(path.read_bytes())["model"] for path in (first, second)]
    assert models[0].keys() == models[1].keys()
    assert all((models[0][name] == models[1][name]).all() for name in models[0])
    settings = {"format": None, "encoder": None, "checkpoint": str(first)}
    assert convert.demanded_keys(settings) == before.detectron2
    first.rename(tmp_path / "alone.pkl")
    alone = read_backbone(tmp_path / "alone.pkl")  # without its companion it says the same
    assert alone.detectron2 == before.detectron2 and (alone.format, alone.method) == ("moco",) * 2
    content = {"model": pickle.loads((tmp_path / "alone.pkl").read_bytes())["model"]}
    first.write_bytes(pickle.dumps(content | {"__author__": "Detectron2 Model Zoo"}))
    (line,) = convert.check_stage(settings)
    assert "first.json beside it describes another file" in line
    first.with_suffix(".json").unlink()
    keys = convert.demanded_keys(settings)  # detectron2's defaults
    assert keys["INPUT.FORMAT"] == "BGR" and keys["MODEL.RESNETS.STRIDE_IN_1X1"] is True
    first.write_bytes(pickle.dumps(content | {"__author__": "torchvision"}))
    keys = convert.demanded_keys(settings)
    assert keys["INPUT.FORMAT"] == "RGB" and keys["MODEL.RESNETS.STRIDE_IN_1X1"] is False
    detector = {
        ("roi_heads." if name.startswith("res5") else "backbone.") + name: value
        for name, value in content["model"].items()
    }
    first.write_bytes(pickle.dumps({"model": detector, "__author__": "Detectron2 Model Zoo"}))
    assert read_backbone(first).arch == "resnet50"


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"architecture": []}, "stride_in_1x1"), ({"architecture": {"stride_in_1x1": 1}}, "stride"),
     ({"input": [1]}, "input"), ({"family": {"a": 1}, "method": 5}, None),
     ({"family": "\x1b[31m", "method": "\x1b[31m" + "x" * 500}, None)],
)  # fmt: skip
def test_an_altered_companion_is_refused_or_harmless(
    tmp_path: Path, change: dict[str, object], expected: str | None
) -> None:
    source, target = save_backbone(tmp_path / "in.pth", "resnet18"), tmp_path / "out.pkl"
    convert_checkpoint(source, target)
    companion = target.with_suffix(".json")
    companion.write_text(json.dumps(json.loads(companion.read_text("utf-8")) | change), "utf-8")
    if expected is not None:
        with pytest.raises(ValueError, match=expected):
            read_backbone(target)
        return
    backbone = read_backbone(target)
    assert backbone.format == backbone.method == "unlisted"


def test_text_out_of_the_file_is_harmless_and_short_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "\x1b]0;pwned\x07\x1b[2K\r" + "x" * 400
    state = {f"{evil}.{k}": v for k, v in source_state("resnet18").items()}
    names = [type(f"Class{i}" + "x" * 100, (), {"__module__": "__main__"}) for i in range(30)]
    for one in names:
        monkeypatch.setattr(sys.modules["__main__"], one.__name__, one, raising=False)
    content = {"state_dict": state, "arch": evil, "hooks": [one() for one in names]}
    torch.save(content, tmp_path / "e.pth")
    assert command.main([str(tmp_path / "e.pth"), str(tmp_path / "out.pkl")]) == 0
    printed = capsys.readouterr().out
    assert all(line.isprintable() and len(line) <= 400 for line in printed.splitlines())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("ignored", [False, True])
def test_signals_that_end_it_clear_away_what_was_begun(name: str, ignored: bool) -> None:
    tool = ROOT / "tools" / "convert_to_detectron2.py"
    code = f"""
import os, runpy, signal, sys
signal.signal(signal.{name}, signal.{"SIG_IGN" if ignored else "SIG_DFL"})
sys.argv = [{str(tool)!r}, "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    os.kill(os.getpid(), signal.{name})
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0 if ignored else 128 + signal.Signals[name], "")


def test_ctrl_c_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "convert_checkpoint", stop)
    (tmp_path / "in").touch()
    assert command.main([str(tmp_path / "in"), str(tmp_path / "out.pkl")]) == 130
    assert capsys.readouterr().err == "convert_to_detectron2: stopped by Ctrl-C\n"


ASSUMED = "ImageNet's mean and std are assumed"
MOMENTUM = "encoder encoder_q. is taken; also there: encoder_k."


@pytest.mark.parametrize(("content", "settings", "expected"), [
    (lambda s: s, {}, []),  # torchvision's
    (lambda s: {f"any.{k}": v.half() for k, v in s.items()}, {}, ["of no listed family", ASSUMED]),
    (lambda s: {f"encoder_{copy}.{k}": v for k, v in s.items() for copy in "qk"}, {}, [MOMENTUM]),
    (lambda s: s, {"format": "torchvision"}, ["of that format as the user states it"]),
    (lambda s: s, {"input": {"order": "BGR"}}, ["input as the user states it: order BGR"]),
    (lambda s: {"state_dict": s, "arch": "resnet34"}, {},
     ["arch says resnet34, its weights are resnet18's: not used"]),
    (lambda s: {"state_dict_ema": s}, {},
     ["the averaged weights, which timm's own loader prefers"]),
    (lambda s: s | {"bn1.running_var": torch.full((64,), 1e-6)}, {},
     ["bn1's running statistics do not fit the input assumed (mean [123.675"]),
])  # fmt: skip
def test_the_companion_holds_what_a_reader_of_the_numbers_should_know(
    content: Callable, settings: dict, expected: list[str], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    torch.save(content(source_state("resnet18")), tmp_path / "theirs.pth")
    settings = {"checkpoint": str(tmp_path / "theirs.pth")} | settings
    convert.run_stage(settings, {}, tmp_path)
    companion = json.loads((tmp_path / "backbone.json").read_text("utf-8"))
    warnings = companion["warnings"]
    assert len(warnings) == len(expected), warnings
    assert all(map(str.startswith, warnings, expected)), warnings
    assert companion["notes"][-1].startswith("proved with FPN only")
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [f"{tmp_path / 'theirs.pth'}: {warning}" for warning in warnings]


def test_an_encoder_name_of_any_characters_and_length_is_one_short_warning(tmp_path: Path) -> None:
    state = source_state("resnet18")
    names = ["a\x1b[31m\n", *(f"{letter * 400}" for letter in "bcdef")]
    torch.save({f"{name}.{k}": v for name in names for k, v in state.items()}, tmp_path / "many")
    report = convert_checkpoint(tmp_path / "many", tmp_path / "many.pkl", encoder="b" * 400 + ".")
    (line,) = [warning for warning in report.warnings if "also there" in warning]
    assert line.isprintable() and len(line) < 1000 and line.endswith(" and 2 more")
