"""The choice among several encoders, by itself and by hand."""

from pathlib import Path

import pytest
import torch

from tests.transfer import published
from tests.transfer.checkpoints.reading import read, same
from tests.transfer.published import windows
from transfer.checkpoints.encoders import find_candidates
from transfer.checkpoints.read import read_backbone

pytestmark = pytest.mark.usefixtures("windows_are_taken")
PAIRS = (
    ("encoder", "momentum_encoder"), ("model.encoder_q", "model.encoder_k"),
    ("base_encoder", "momentum_encoder"), ("backbone", "backbone_momentum"),
    ("backbone", "key_backbone"), ("backbone", "teacher_backbone"), ("encoder", "target_encoder"),
    ("online_network", "target_network"), ("online", "target"), ("q_encoder", "k_encoder"),
    ("backbone", "student_backbone"), ("model.online_net.0", "model.target_net.0"),
)  # fmt: skip


def test_every_encoder_of_a_dict_is_a_candidate() -> None:
    state = windows()
    names = published.under("module.encoder_q.", state)
    names |= published.under("module.encoder_k.", state)
    candidates = {one.label: one for one in find_candidates({"state_dict": names})}
    assert set(candidates) == {"module.encoder_q.", "module.encoder_k."}
    first = candidates["module.encoder_q."]
    assert first.role == "encoder_q" and set(first.tensors) == set(state)
    assert first.sources["conv1.weight"] == "module.encoder_q.conv1.weight"


@pytest.mark.parametrize(("online", "copy"), PAIRS)
def test_the_evaluated_one_is_taken_beside_its_copy(online: str, copy: str, tmp_path: Path) -> None:
    state = windows()
    second = published.other(state)
    for wrapper, spelled in (("", published.sequential), ("module._orig_mod.", dict)):
        names = published.under(f"{wrapper}{copy}.", spelled(second))
        names |= published.under(f"{wrapper}{online}.", spelled(state))
        backbone = read({"state_dict": names, "epoch": 3}, tmp_path / "file")
        assert same(backbone.state_dict, state)
        assert backbone.other_encoders == (f"{wrapper}{copy}.",)
    other = read_backbone(tmp_path / "file", encoder=f"{wrapper}{copy}.")
    assert same(other.state_dict, second)


@pytest.mark.parametrize(
    ("one", "other"),
    [("student", "teacher"), ("student_backbone", "teacher_backbone"), ("model", "model_ema"),
     ("encoder1", "encoder2"), ("backbone", "target_encoder")],
)  # fmt: skip
def test_what_projects_mean_differently_is_refused(one: str, other: str, tmp_path: Path) -> None:
    state = windows()
    names = published.under(f"{one}.", state) | published.under(f"{other}.", published.other(state))
    with pytest.raises(ValueError, match=rf"--encoder: {one}\. \(120 tensors\), {other}\."):
        read({"state_dict": names}, tmp_path / "file")
    assert same(read_backbone(tmp_path / "file", encoder=f"{one}.").state_dict, state)


@pytest.mark.parametrize("key", ["StochasticWeightAveraging", "EMACallback", "EMA"])
@pytest.mark.parametrize("name", ["average_model_state", "ema_state_dict", "ema_weights"])
def test_what_callbacks_keep_is_no_encoder_of_the_file(key: str, name: str, tmp_path: Path) -> None:
    state = published.under("model.", windows())
    content = published.lightning(state)
    content["callbacks"] = {key: {name: published.other(state)}}
    backbone = read(content, tmp_path / "file")
    assert backbone.encoder == "state_dict.model." and same(backbone.state_dict, windows())
    assert backbone.other_encoders == (f"callbacks.{key}.{name}.model.",)


def test_another_encoder_is_taken_on_demand(tmp_path: Path) -> None:
    state = windows()
    second = published.other(state)
    source = tmp_path / "file"
    cases = {
        "dino-full": ("student", "student.module.backbone.", "student.module.backbone"),
        "intl": ("module.momentum_backbone.", "momentum_backbone"),
        "pycontrast": ("model_ema", "model_ema.encoder."),
        "moco": ("module.encoder_k.", "encoder_k"),
    }
    for name, spellings in cases.items():
        torch.save(published.files(state)[name][2], source)
        assert len(read_backbone(source).other_encoders) == 1
        for spelling in spellings:
            got = read_backbone(source, encoder=spelling)
            assert torch.equal(got.state_dict["bn1.bias"], second["bn1.bias"]), (name, spelling)
    with pytest.raises(ValueError, match=r"no encoder under 'encoder'; found: module.encoder_q"):
        read_backbone(source, encoder="encoder")
    torch.save({"enc_" + name: value for name, value in state.items()}, source)
    assert len(read_backbone(source, encoder="enc_").state_dict) == 120


def test_a_second_encoder_is_taken_only_on_demand(tmp_path: Path) -> None:
    state = windows()
    content = {"state_dict": published.under("module.encoder_k.", state)}
    source = save(content, tmp_path / "file")
    backbone = read_backbone(source, encoder="module.encoder_k.")
    assert torch.equal(backbone.state_dict["bn1.bias"], state["bn1.bias"])
    save({"target": {"state_dict": state}}, source)
    assert read_backbone(source, encoder="target.state_dict").encoder == ""
    second = published.other(state)
    save({"ema_state_dict": second, "meta": {}, "state_dict": state}, source)
    assert torch.equal(read_backbone(source).state_dict["bn1.bias"], state["bn1.bias"])


def test_a_format_does_not_choose_between_encoders(tmp_path: Path) -> None:
    state = windows()
    second = published.other(state)
    both = {"model": state, "state_dict": second}
    source = save(both, tmp_path / "file")
    with pytest.raises(ValueError, match=r"2 encoders where --format torchvision has one.*model"):
        read_backbone(source, format="torchvision")
    chosen = read_backbone(source, format="torchvision", encoder="state_dict")
    assert torch.equal(chosen.state_dict["bn1.bias"], second["bn1.bias"])
    save({"model": state, "model_ema": {"module": second}}, source)
    assert read_backbone(source, format="torchvision").encoder == "model"


def save(content: object, path: Path, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path
