"""DeepMind's BYOL: haiku's classes, names and shapes."""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.transfer import published
from transfer.checkpoints.haiku import without_haiku
from transfer.checkpoints.read import read_backbone
from transfer.checkpoints.state_dicts import Instance, Reference, TensorView


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
