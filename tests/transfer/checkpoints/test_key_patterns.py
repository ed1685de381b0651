"""Other spellings than the published ones: what is taken, and what is refused."""

import importlib.util
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from transfer.checkpoints.families import is_copy
from transfer.checkpoints.haiku import without_haiku
from transfer.checkpoints.read import read_backbone
from transfer.checkpoints.state_dicts import Instance, Reference, TensorView

HERE = Path(__file__).resolve()


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


published = load(HERE.parents[1] / "published.py")
State = dict[str, Tensor]


def resnet18() -> State:
    with torch.device("meta"):
        names = torchvision.models.resnet18(weights=None).state_dict()
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(3)
        if name.endswith("tracked")
        else 0.1 + torch.rand(value.shape, generator=draw)
        for name, value in names.items()
        if not name.startswith("fc.")
    }


def read(content: object, path: Path, encoder: str | None = None) -> Any:
    torch.save(content, path)
    return read_backbone(path, encoder=encoder)


def same(got: State, wanted: State) -> bool:
    return got.keys() == wanted.keys() and all(torch.equal(got[n], wanted[n]) for n in wanted)


PAIRS = (
    ("encoder", "momentum_encoder"), ("model.encoder_q", "model.encoder_k"),
    ("base_encoder", "momentum_encoder"), ("backbone", "backbone_momentum"),
    ("backbone", "key_backbone"), ("backbone", "teacher_backbone"), ("encoder", "target_encoder"),
    ("online_network", "target_network"), ("online", "target"), ("q_encoder", "k_encoder"),
    ("backbone", "student_backbone"), ("model.online_net.0", "model.target_net.0"),
)  # fmt: skip


@pytest.mark.parametrize(("online", "copy"), PAIRS)
def test_the_evaluated_one_is_taken_beside_its_copy(online: str, copy: str, tmp_path: Path) -> None:
    state = resnet18()
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
    state = resnet18()
    names = published.under(f"{one}.", state) | published.under(f"{other}.", published.other(state))
    with pytest.raises(ValueError, match=rf"--encoder: {one}\. \(120 tensors\), {other}\."):
        read({"state_dict": names}, tmp_path / "file")
    assert same(read_backbone(tmp_path / "file", encoder=f"{one}.").state_dict, state)


def test_a_copy_differs_in_one_part_of_its_path() -> None:
    assert is_copy("a.momentum_encoder.b", "a.encoder.b")
    assert not is_copy("a.encoder.b", "a.momentum_encoder.b")
    assert not is_copy("c.momentum_encoder.b", "a.encoder.b")
    assert not is_copy("momentum_encoder", "encoder.b")
    assert not is_copy("encoder", "encoder")


def test_half_of_the_names_wrapped(tmp_path: Path) -> None:
    state = resnet18()
    for prefix in ("", "encoder_q."):
        mixed = {
            ("module." if index % 2 else "") + prefix + name: value
            for index, (name, value) in enumerate(state.items())
        }
        assert same(read({"state_dict": mixed}, tmp_path / "file").state_dict, state)
    stray = mixed | {"encoder_q.stray.weight": torch.ones(2)}
    with pytest.raises(ValueError, match=r"1 extra \['stray.weight'\]"):
        read({"state_dict": stray}, tmp_path / "file")


COUNTERS = {
    "NaN": (torch.tensor(float("nan")), "nan of torch.float32"),
    "infinite": (torch.tensor(float("inf")), "inf of torch.float32"),
    "a fraction": (torch.tensor(2.5), "2.5 of torch.float32"),
    "negative": (torch.tensor(-3), "-3 of torch.int64"),
    "absurd": (torch.tensor(1e30), "1.0\\d+e\\+30 of torch.float32"),
}


@pytest.mark.parametrize("name", sorted(COUNTERS))
def test_a_counter_that_counts_nothing_is_refused(name: str, tmp_path: Path) -> None:
    value, shown = COUNTERS[name]
    with pytest.raises(ValueError, match=f"bn1.num_batches_tracked is no count: {shown}"):
        read(resnet18() | {"bn1.num_batches_tracked": value}, tmp_path / "file")


def test_whole_counters_of_any_type_are_taken(tmp_path: Path) -> None:
    state = resnet18()
    for value in (torch.tensor(3.0), torch.tensor([3], dtype=torch.int32), torch.tensor(3).half()):
        changed = {n: value if n.endswith("tracked") else v for n, v in state.items()}
        assert same(read(changed, tmp_path / "file").state_dict, state)


def test_names_as_bytes(tmp_path: Path) -> None:
    state, path = resnet18(), tmp_path / "file"
    for legacy in (False, True):
        content = {b"state_dict": {b"module." + name.encode(): v for name, v in state.items()}}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        assert same(read_backbone(path).state_dict, state)
    arrays = {name.encode(): value.numpy() for name, value in state.items()}
    for protocol in (0, 2, 4):
        path.write_bytes(pickle.dumps(arrays, protocol))
        assert same(read_backbone(path).state_dict, state)
    with pytest.raises(ValueError, match=r"two tensors of the name conv1\.weight, one as bytes"):
        read(state | {b"conv1.weight": torch.ones(2)}, path)


def test_shortcut_for_downsample_with_a_stem_of_7x7(tmp_path: Path) -> None:
    state = resnet18()
    names = {name.replace("downsample", "shortcut"): value for name, value in state.items()}
    got = read({"state_dict": published.under("module.", names)}, tmp_path / "file")
    assert same(got.state_dict, state)
    with pytest.raises(ValueError, match="3x3 stem for small images"):
        read(names | {"conv1.weight": torch.ones(64, 3, 3, 3)}, tmp_path / "file")


class Frozen(dict[str, Any]):
    """Stands for haiku's frozen dict: pickled as a call of its class on a dict."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Frozen, (dict(self),)


class Fields(NamedTuple):
    """Stands for DeepMind's named tuple of networks."""

    online_params: Any
    target_params: Any
    online_state: Any
    target_state: Any


def test_haikus_own_classes(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.rand(4, 3, 7, 7), "layer2.0.downsample.1.bias": torch.rand(4),
             "bn1.running_var": torch.rand(4)}  # fmt: skip
    online, target = published.haiku(state), published.haiku(published.other(state))
    frozen = [Frozen({k: Frozen(v) for k, v in part.items()}) for part in (*online, *target)]
    fields = Fields(frozen[0], frozen[2], frozen[1], frozen[3])
    path = tmp_path / "file"
    raw = pickle.dumps({"experiment_state": fields, "rng": np.arange(2)}, 2)
    for cls, name in (
        (Frozen, "haiku._src.data_structures\nFlatMapping"),
        (Fields, "byol\n_State"),
    ):
        raw = raw.replace(f"c{cls.__module__}\n{cls.__name__}\n".encode(), f"c{name}\n".encode())
    assert b"Frozen" not in raw and b"Fields" not in raw
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="no ResNet among its 11 tensors"):
        read_backbone(path)


def test_haikus_kernels_are_turned_and_its_norms_flattened() -> None:
    def array(value: np.ndarray[Any, Any]) -> Instance:
        dtype = Instance(Reference("numpy", "dtype"), ("f4",))
        state = (1, value.shape, dtype, False, value.astype("f4").tobytes())
        return Instance(Reference("numpy.core.multiarray", "_reconstruct"), state=state)

    kernel = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)  # height, width, in, out
    params = {
        "net/~/block_group_1/~/block_3/~/conv_0": {"w": array(kernel)},
        "net/~/initial_batchnorm": {"scale": array(np.arange(4.0).reshape(1, 1, 1, 4))},
        "predictor/linear": {"w": array(np.ones((2, 3)))},
    }
    moving = {"average": array(np.full((1, 1, 1, 4), 2.0)), "hidden": array(np.ones((1, 1, 1, 4)))}
    averages = {"net/~/initial_batchnorm/~/var_ema": moving}
    content = {"experiment_state": {"online_params": params, "online_state": averages}}
    got: dict[str, TensorView] = without_haiku(content)["experiment_state"]["online_params"]
    assert set(got) == {"layer2.3.conv1.weight", "bn1.weight", "bn1.running_var",
                        "predictor.linear.weight"}  # fmt: skip
    assert np.array_equal(got["layer2.3.conv1.weight"].read().numpy(), kernel.transpose(3, 2, 0, 1))
    assert got["bn1.weight"].read().tolist() == [0, 1, 2, 3]
    assert got["bn1.running_var"].read().tolist() == [2] * 4
    assert without_haiku({"experiment_state": 3}) == {"experiment_state": 3}
