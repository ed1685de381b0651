"""Exported folders as timm, torchvision, transformers and detectron2 themselves load them."""

import doctest
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoImageProcessor, ResNetBackbone, ResNetModel
from transformers.utils.logging import disable_progress_bar

from tests.scripts import load_script
from tests.transfer.published import resnet, save_backbone, source_state, windows
from transfer import export
from transfer.checkpoints.read import Backbone, read_backbone
from transfer.config.convert import StatedInput
from transfer.convert import convert_checkpoint
from transfer.export import export_backbone, summary
from transfer.hub.formats import LIBRARIES, entries

ARCHS = ("resnet18", "resnet50")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {arch: save_backbone(folder / f"{arch}.pth", arch) for arch in ARCHS}


@pytest.fixture
def said() -> Any:
    """What the libraries log from a warning on; Python's own warnings are errors anyway."""
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    handler = Keep(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("", "transformers", "huggingface_hub")]
    for logger in loggers:
        logger.addHandler(handler)
    disable_progress_bar()
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


def expected_features(arch: str, images: Tensor) -> list[Tensor]:
    model = torchvision.models.get_model(arch, weights=None)
    model.load_state_dict(source_state(arch), strict=False)
    model.eval()
    features = []
    out = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        out = layer(out)
        features.append(out)
    return features


def assert_equal(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert float((one - other).abs().max() / other.abs().max()) <= 1e-5


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_timm_loads_it_without_a_word(
    arch: str, sources: dict[str, Path], tmp_path: Path, said: list[str]
) -> None:
    out = tmp_path / "out"
    export_backbone(sources[arch], out, "timm")
    images = torch.randn(2, 3, 64, 96)
    wanted = expected_features(arch, images)
    weights = str(out / "model.safetensors")
    plain = timm.create_model(arch, num_classes=0, checkpoint_path=weights).eval()
    assert_equal([plain.forward_features(images)], wanted[-1:])
    folder = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert_equal([folder(images)], [wanted[-1].mean((2, 3))])
    data = timm.data.resolve_model_data_config(folder)
    assert data["mean"] == pytest.approx([1 / 255, 2 / 255, 3 / 255])
    assert data["std"] == pytest.approx([4 / 255, 5 / 255, 6 / 255])
    assert said == []


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_torchvision_loads_it_without_a_word(
    arch: str, sources: dict[str, Path], tmp_path: Path, said: list[str]
) -> None:
    export_backbone(sources[arch], tmp_path / "out", "torchvision")
    model = torchvision.models.get_model(arch, weights=None)
    model.fc = torch.nn.Identity()
    answer = model.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    assert (answer.missing_keys, answer.unexpected_keys) == ([], [])
    images = torch.randn(2, 3, 64, 96)
    wanted = expected_features(arch, images)[-1].mean((2, 3))
    assert_equal([model.eval()(images)], [wanted])
    assert said == []


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_transformers_loads_it_without_a_word(
    arch: str, sources: dict[str, Path], tmp_path: Path, said: list[str]
) -> None:
    out = tmp_path / "out"
    export_backbone(sources[arch], out, "transformers")
    model, report = ResNetBackbone.from_pretrained(out, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = torch.randn(2, 3, 64, 96)
    wanted = expected_features(arch, images)
    assert_equal(list(model.eval()(images).feature_maps), wanted)
    pooled = ResNetModel.from_pretrained(out).eval()(images).pooler_output
    assert_equal([pooled.flatten(1)], [wanted[-1].mean((2, 3))])
    processor = AutoImageProcessor.from_pretrained(out)
    assert list(processor.image_mean) == pytest.approx([1 / 255, 2 / 255, 3 / 255])
    assert said == []


def test_counters_that_the_source_has_not_are_0_for_transformers(
    tmp_path: Path, said: list[str]
) -> None:
    state = {name: v for name, v in resnet().items() if not name.endswith("tracked")}
    torch.save(state, tmp_path / "old.pth")
    export_backbone(tmp_path / "old.pth", tmp_path / "out", "transformers")
    _, report = ResNetBackbone.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and said == []


def test_detectron2_has_what_the_converter_writes(sources: dict[str, Path], tmp_path: Path) -> None:
    made = export_backbone(sources["resnet50"], tmp_path / "out", "detectron2")
    convert_checkpoint(sources["resnet50"], tmp_path / "backbone.pkl")
    for name in ("backbone.pkl", "backbone.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert "318 entries of the FPN model and 318 entries of the C4 model" in " ".join(made.proof)


def same(one: Backbone, other: Backbone) -> None:
    assert one.state_dict.keys() == other.state_dict.keys()
    for name, value in one.state_dict.items():
        assert torch.equal(other.state_dict[name], value), name
    fields = ("arch", "architecture", "input", "format", "method")
    assert [getattr(one, name) for name in fields] == [getattr(other, name) for name in fields]


@pytest.mark.parametrize("format", LIBRARIES)
def test_the_folder_is_input_again_bit_for_bit(
    format: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    out, source = tmp_path / "out", sources["resnet18"]
    export_backbone(source, out, format)
    same(read_backbone(source), read_backbone(out))
    report = convert_checkpoint(out, tmp_path / "again.pkl")
    assert (report.method, report.family) == ("test", "whitening-transfer")
    same(read_backbone(source), read_backbone(tmp_path / "again.pkl"))
    export_backbone(out, tmp_path / "twice", format)
    same(read_backbone(source), read_backbone(tmp_path / "twice"))
    assert (out / "README.md").stat().st_mode == next(out.glob("*.[sp]*")).stat().st_mode


def test_a_network_of_caffes_kind_keeps_its_order_and_stride(tmp_path: Path) -> None:
    """Blue first, std 1, stride in the 1x1: transformers can say the stride, nobody the order."""
    torch.save(source_state("resnet50"), tmp_path / "msra.pth")
    source = tmp_path / "msra.pkl"
    stated = StatedInput(order="BGR", std=(1, 1, 1), stride_in_1x1=True)
    convert_checkpoint(tmp_path / "msra.pth", source, stated=stated)
    for format in ("timm", "torchvision"):
        with pytest.raises(ValueError, match=rf"msra.pkl: its bottlenecks .*{format}'s resnet50"):
            export_backbone(source, tmp_path / format, format)
    for format in ("transformers", "detectron2"):
        made = export_backbone(source, tmp_path / format, format)
        same(read_backbone(source), read_backbone(tmp_path / format))
        card = (tmp_path / format / "README.md").read_text("utf-8")
        assert "in the order BGR" in card
        assert ("**The channels go in as BGR.**" in card) is (format == "transformers")
    assert not (tmp_path / "transformers" / "preprocessor_config.json").exists()
    config = json.loads((tmp_path / "transformers" / "config.json").read_text("utf-8"))
    assert config["downsample_in_bottleneck"] is True
    said = summary(replace(made, format="transformers"), tmp_path)
    assert any("WARNING: channels go in as BGR" in line for line in said)


REFUSED = {
    "small stem": ("timm", {"conv1.weight": torch.ones(64, 3, 3, 3)}, "3x3 stem for small images"),
    "no network": ("transformers", {"layer4.1.bn2.bias": None}, "not a complete torchvision"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_no_format_can_say_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    format, changes, expected = REFUSED[name]
    state = {n: v for n, v in (resnet() | changes).items() if v is not None}
    torch.save(state, tmp_path / "source.pth")
    with pytest.raises(ValueError, match=expected) as caught:
        export_backbone(tmp_path / "source.pth", tmp_path / "out", format)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]


WIDE = {  # the libraries that build it
    "resnext50_32x4d": ("timm", "torchvision", "detectron2"),
    "wide_resnet50_2": ("timm", "torchvision", "detectron2"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("windows_are_taken")
@pytest.mark.parametrize("arch", sorted(WIDE))
def test_other_widths_are_written_where_the_library_has_them(arch: str, tmp_path: Path) -> None:
    torch.save(windows(arch), tmp_path / "wide.pth")
    source = read_backbone(tmp_path / "wide.pth")
    for format in LIBRARIES:
        out = tmp_path / format
        if format in WIDE[arch]:
            export_backbone(tmp_path / "wide.pth", out, format)
            same(source, read_backbone(out))
        else:
            with pytest.raises(ValueError, match="no groups and no wide 3x3 convolutions"):
                export_backbone(tmp_path / "wide.pth", out, format)
            assert not out.exists()


def test_nothing_is_written_over_and_nothing_left_by_half(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "README.md").write_text("a licence, filled in", encoding="utf-8")
    with pytest.raises(ValueError, match="taken: is there and holds files; wanted a new folder"):
        export_backbone(sources["resnet18"], taken, "timm")
    with pytest.raises(ValueError, match=r"README.md: is a file, wanted a folder"):
        export_backbone(sources["resnet18"], taken / "README.md" / "out", "timm")

    def turned(backbone: Backbone, format: str) -> dict[str, Tensor]:
        names = entries(backbone, format)
        return names | {"bn1.weight": names["bn1.weight"] + 1}

    monkeypatch.setattr("transfer.hub.formats.entries", turned)
    with pytest.raises(ValueError, match=r"features of timm .* differ by .*; nothing was written"):
        export_backbone(sources["resnet18"], tmp_path / "out", "timm")
    monkeypatch.setattr(export, "_in_library", lambda *_: ())
    with pytest.raises(ValueError, match=r"read back, bn1.weight is another; nothing was written"):
        export_backbone(sources["resnet18"], tmp_path / "out", "timm")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    export_backbone(sources["resnet18"], tmp_path / "empty", "torchvision")
    assert (tmp_path / "empty" / "README.md").is_file()


def test_a_library_that_is_not_there_is_said_in_the_card(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    made = export_backbone(sources["resnet18"], tmp_path / "out", "timm")
    assert "timm is not installed where this was written: not loaded with it." in made.proof
    assert "not loaded with it" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_the_encoder_and_family_of_a_published_file_are_taken(tmp_path: Path) -> None:
    torch.save({"state_dict": {f"module.encoder_q.{k}": v for k, v in resnet().items()}},
               tmp_path / "moco.pth.tar")  # fmt: skip
    made = export_backbone(
        tmp_path / "moco.pth.tar", tmp_path / "out", "transformers", encoder="module.encoder_q."
    )
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "moco.pth.tar OUT --format transformers --encoder module.encoder_q.\n" in card
    assert (made.method, made.name) == ("moco", "moco-resnet18")
    again = read_backbone(tmp_path / "out")
    assert (again.format, again.method, again.encoder) == ("moco", "moco", "")
    assert not any("assumed" in note for note in again.notes)
    lines = summary(made, tmp_path / "out")
    assert "hf upload ORG/moco-resnet18" in lines[-1] and "huggingface-cli upload" in lines[-1]
    assert "without the recipe of the pretraining; no means over seeds" in lines[-2]


def test_the_script_writes_a_folder_or_says_in_one_line_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool, out = load_script("export_backbone"), tmp_path / "a b"
    torch.save(resnet(), tmp_path / "plain.pth")
    assert tool.main([str(tmp_path / "plain.pth"), str(out), "--format", "torchvision"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: resnet18 in the format of torchvision"
    assert f"hf upload ORG/plain-resnet18 '{out}'" in lines[-1]
    for words, expected in (
        ([str(tmp_path / "none.pth"), str(tmp_path / "b")], "none.pth: no such checkpoint file"),
        ([str(tmp_path / "plain.pth"), str(out)], "a b: is there and holds files"),
        ([str(tmp_path / "plain.pth"), "b", "--family", "mocoo"], "unknown format 'mocoo'; did"),
        (["hf://org", str(tmp_path / "b")], "hf://org: wanted hf://ORG/NAME@REVISION"),
    ):
        assert tool.main([*words, "--format", "timm"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("export_backbone: ") and expected in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b", "plain.pth"]


def test_the_example_of_the_docstring() -> None:
    assert doctest.testmod(export).failed == 0
