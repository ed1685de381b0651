"""Files and folders that are no checkpoint: each is named, with what to give in its place."""

import io
import json
import lzma
import os
import pickle
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from tests.transfer.published import resnet
from transfer.checkpoints import families, key_patterns, other_files
from transfer.checkpoints.other_files import (
    kind_of_file,
    kind_of_text,
    kind_of_zip,
    tables_sha256,
)
from transfer.checkpoints.read import read_backbone


def archive(**records: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, raw in records.items():
            packed.writestr(name.replace("__", "/").replace("_dot_", "."), raw)
    return file.getvalue()


def renamed(**endings: str) -> bytes:
    """Return a plain pickle of arrays whose names end otherwise."""
    state = {}
    for name, value in resnet().items():
        if not name.endswith("tracked"):
            state[name.replace("running_mean", endings["mean"]).replace(
                "running_var", endings["var"])] = value.numpy()  # fmt: skip
    return pickle.dumps(state, 2)


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def of_shape(*last: int) -> bytes:
    """Return a network whose kernels have other dimensions than two."""
    return saved({
        name: torch.ones(*value.shape[:2], *last) if value.ndim == 4 else value
        for name, value in resnet().items()
    })  # fmt: skip


def of_depth(*counts: int) -> bytes:
    blocks = list(counts)
    network = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, blocks)
    return saved(network.state_dict())


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "TorchScript": (lambda: archive(a__data_dot_pkl=b"", a__constants_dot_pkl=b"",
                                    a__code__x_dot_py=b"x"), r"TorchScript archive; save model"),
    "exported": (lambda: archive(a__archive_format=b"pt2", a__models__model_dot_json=b"{}"),
                 r"torch\.export \(\.pt2\); save model"),
    "zip of a checkpoint": (lambda: archive(model_dot_pth=b"x" * 99),
                            r"a zip archive of model\.pth; unpack it"),
    "npz": (lambda: archive(a_dot_npy=b"", b_dot_npy=b""), r"numpy arrays \(\.npz\)"),
    "keras": (lambda: archive(config_dot_json=b"", model_dot_weights_dot_h5=b""), "Keras model"),
    "onnx": (lambda: b"\x08\x07\x12\x07pytorch" + bytes(99), "ONNX model"),
    "xz": (lambda: lzma.compress(b"x" * 99), "an xz archive; unpack it first"),
    "lzma": (lambda: lzma.compress(b"x", lzma.FORMAT_ALONE), "an lzma archive; unpack it first"),
    "zstandard": (lambda: b"\x28\xb5\x2f\xfd" + bytes(99), "a zstandard archive; unpack it"),
    "HTML": ("<!DOCTYPE html><title>Téléchargement</title>".encode, "a web page"),
    "HTML after a space": ("\n  <html><body>é".encode, "a web page"),
    "JSON": (lambda: b'{"model": "resnet"}', "a JSON text that starts"),
    "text with an accent": (lambda: "réseau\n".encode() * 99, "a text file that starts 'réseau"),
    "quantised": (lambda: saved(
        {"conv1.weight": torch.quantize_per_tensor(torch.ones(64, 3, 7, 7), 0.1, 0, torch.qint8),
         "conv1.scale": torch.tensor(1.0)}),
        r"its tensors are quantised: save the state_dict\(\).*\(conv1\.weight\)"),
    "meta": (lambda: saved({n: v.to("meta") if v.ndim == 4 else v for n, v in resnet().items()}),
             "on torch's meta device, without values"),
    "sparse": (lambda: saved(resnet() | {"fc.weight": torch.eye(3), "layer1.0.conv1.weight":
                             torch.ones(64, 64, 3, 3).to_sparse()}), r"save x\.to_dense"),
    "DTensor": (lambda: b"\x80\x02}" + b"X\x0c\x00\x00\x00conv1.weight" + b"ctorch._tensor\n"
                b"_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_wrapper_subclass\n"
                b"ctorch.distributed.tensor\nDTensor\n)}tRs.", "parts of distributed tensors"),
    "Paddle": (lambda: renamed(mean="_mean", var="_variance"),
               r"its norms have other names \(bn1\._mean\), as PaddlePaddle"),
    "PaddleClas": (lambda: saved({"conv1._conv.weight": torch.ones(2), "conv1._batch_norm._mean":
                   torch.ones(2)}), r"no ResNet by torchvision's names in it: its norms have"),
    "MindSpore": (lambda: renamed(mean="moving_mean", var="moving_variance"), "MindSpore"),
    "joblib": (lambda: b"\x80\x02}cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}b\xff\xff.",
               "a joblib file; load it with joblib"),
    "joblib, compressed": (lambda: b"\x78\x9c" + bytes(range(99)), "load it with joblib"),
    "3-D": (lambda: of_shape(3, 3, 3), "it is a 3-D ResNet"),
    "1-D": (lambda: of_shape(3), "it is a 1-D ResNet"),
    "ResNet-26": (lambda: of_depth(2, 2, 2, 2), r"2-2-2-2 bottleneck blocks \(a ResNet-26\)"),
    "ResNet-14": (lambda: of_depth(1, 1, 1, 1), r"1-1-1-1 bottleneck blocks \(a ResNet-14\)"),
    "a tensor": (lambda: saved(torch.zeros(3)), "holds a single tensor, wanted a state dict"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(99), "a picture"),
    "nothing at all": (lambda: b"PK\x05\x06" + bytes(18), "an empty zip archive"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    make, expected = FILES[name]
    path = tmp_path / "file.pth"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=expected) as caught:
        read_backbone(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 400
    assert str(caught.value).startswith(f"{path}: ")


FOLDERS = {
    "distributed": ((".metadata", "__0_0.distcp"), "a distributed checkpoint; join it with python"),
    "deepspeed": (("zero_to_fp32.py", "latest"), r"DeepSpeed checkpoint; join it with the zero"),
    "tensorflow": (("saved_model.pb",), "TensorFlow SavedModel"),
    "unpacked": (("data.pkl", "data", "version"), "a torch file that was unpacked"),
    "the hub's cache": (
        ("blobs", "refs", "snapshots"),
        "give the folder of one commit in its snap",
    ),
    "other": (("last.pth", "args.txt"), r"wanted the checkpoint file in it; it holds args\.txt, l"),
    "empty": ((), "it holds nothing"),
}


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_a_folder_is_named(name: str, tmp_path: Path) -> None:
    files, expected = FOLDERS[name]
    for file in files:
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(ValueError, match=expected):
        read_backbone(tmp_path)


def test_a_link_to_weights_that_were_not_downloaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("../../blobs/0123")
    with pytest.raises(
        ValueError, match=r"its model\.safetensors is a link to nothing; download it"
    ):
        read_backbone(tmp_path)
    torch.save(torch.zeros(3), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds a single tensor"):  # and not the link
        read_backbone(tmp_path)


def test_what_is_no_file_is_named_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path, kind in ((tmp_path / "pipe", "a named pipe"), (Path("/dev/zero"), "a device"),
                           (tmp_path / "socket", "a socket")):  # fmt: skip
            with pytest.raises(ValueError, match=f"is {kind}, wanted a checkpoint file"):
                read_backbone(path)


def test_the_digest_of_the_tables_is_that_of_the_code_that_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = [Path(str(module.__file__)) for module in (families, key_patterns)]
    assert list(other_files.FAMILY_TABLES) == tables
    before = tables_sha256()
    copies = [tmp_path / table.name for table in tables]
    monkeypatch.setattr(other_files, "FAMILY_TABLES", copies)
    for table, copy in zip(tables, copies, strict=True):
        copy.write_bytes(table.read_bytes())
    assert tables_sha256() == before  # wherever they lie
    for table, copy in zip(tables, copies, strict=True):
        copy.write_bytes(table.read_bytes() + b"#")
        assert tables_sha256() != before
        copy.write_bytes(table.read_bytes())


def test_checkpoints_are_none_of_these() -> None:
    assert kind_of_file(saved({})[:256]) is None
    assert kind_of_file(pickle.dumps({}, 4)) is None
    assert kind_of_zip(["archive/data.pkl", "archive/data/0", "archive/version"]) is None
    assert kind_of_text(bytes(range(200, 256))) is None
    header = json.dumps({"a": 1}).encode()
    assert kind_of_file(len(header).to_bytes(8, "little") + header) is None
    assert kind_of_file(np.arange(9.0).tobytes()) is None
