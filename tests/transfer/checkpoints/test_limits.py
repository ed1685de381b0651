"""Hostile files in processes of their own, whose memory and CPU time the kernel limits.

A file may take four times its size and 500 MB, and a minute of CPU.
"""

import io
import json
import math
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

from tests.transfer.opcodes import storage, text, torch_zip
from transfer.checkpoints.unpickler import (
    HEAVY_OPCODE_BYTES,
    OPCODE_BYTES,
    LimitError,
    Limits,
    SafeUnpickler,
    cpu_time_limit,
)

ROOT = Path(__file__).resolve().parents[3]
CHILD = """
import resource, sys
from pathlib import Path
path = Path(sys.argv[1])
import numpy, safetensors, transfer.checkpoints.read
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = mapped + 5 * path.stat().st_size + 500 * 10**6  # the file itself is mapped too
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
try:
    transfer.checkpoints.read.read_backbone(path)
except ValueError as error:
    print(error)
"""
P2 = b"\x80\x02"


def long(number: int) -> bytes:
    raw = number.to_bytes((number.bit_length() + 8) // 8 or 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def nested_again_and_again() -> bytes:
    """Return 1000 readings of one nested file in which paths are made of paths."""
    inner = P2 + text(b"a" * 64) + b"q\x000"
    for index in range(18):
        inner += name("pathlib", "PurePosixPath") + b"(" + 2 * (b"h" + bytes([index]))
        inner += b"tRq" + bytes([index + 1]) + b"0"
    inner += b"h\x12."
    blob = b"B" + struct.pack("<I", len(inner)) + inner + b"q\x00"
    calls = name("torch.storage", "_load_from_bytes") + b"q\x0100](" + b"h\x01(h\x00tR" * 1000
    return torch_zip(P2 + b"}" + text(b"a") + blob + calls + b"es.")


def colliding_tuples(wrap: Callable[[bytes], bytes]) -> bytes:
    """Return a dict or set of tuples of two numbers that have one hash."""
    first, second, seed = 11400714785074694791, 14029467366897019727, 2870177450012600261
    mask = 2**64 - 1
    inverse, draw, pairs = pow(second, -1, 2**64), random.Random(0), []
    while len(pairs) < 40_000:
        a = draw.getrandbits(59)
        lane = (seed + a * second) & mask
        lane = (((lane << 31) | (lane >> 33)) & mask) * first
        b = ((12345678901234567 - lane) * inverse) & mask
        b -= 2**64 if b >> 63 else 0
        if abs(b) < 2**60:
            pairs.append(long(a) + long(b) + b"\x86")
    return wrap(b"(" + b"".join(wrap(pair) for pair in pairs))


def on_one_storage(count: int) -> bytes:
    """Return a network three times as wide as ResNet-50, all tensors on the same bytes."""
    with torch.device("meta"):
        network = torchvision.models.resnet50().state_dict()
    body = P2 + b"}("
    for key, value in network.items():
        if key.startswith("fc.") or key.endswith("tracked"):
            continue
        dims = 1 if key == "conv1.weight" else 2
        shape = [3 * n if axis < dims else n for axis, n in enumerate(value.shape)]
        steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        body += text(key.encode()) + name("torch._utils", "_rebuild_tensor_v2") + b"("
        body += storage(count) + b"K\x00(" + b"".join(map(long, shape)) + b"t("
        body += b"".join(map(long, steps)) + b"t\x89NtR"
    return torch_zip(body + b"u.", {"data/0": bytes(4 * count)})


def safetensors(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def empty_tensors() -> bytes:
    """Return a safetensors header that names 250,000 empty tensors."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return safetensors(json.dumps({str(n): entry for n in range(250_000)}).encode())


def names(count: int, key: Callable[[int], str]) -> bytes:
    """Return a dict of tensors, one on the other, under these names."""
    view = name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage(1)
    view += b"K\x00)q\x00h\x00\x89NtRq\x010"
    body = b"".join(text(key(n).encode()) + b"h\x01" for n in range(count))
    return torch_zip(P2 + view + b"}(" + body + b"u.", {"data/0": bytes(4)})


def encoders(count: int, beside: int) -> bytes:
    """Return so many encoders of one role, and as many long names beside each."""
    wrappers = [f"{n:07b}.".replace("0", "module.").replace("1", "net.")[:-1] for n in range(count)]
    rows = [f"{wrapper}backbone.{'x.' * 200}{n}" for wrapper in wrappers for n in range(beside)]
    rows += [f"{wrapper}backbone.layer1.0.conv1.weight" for wrapper in wrappers]
    return names(len(rows), lambda n: rows[n])


MODULES = b"".join(text(b"m%d" % n) + b"h\x01" for n in range(15_000))
ARRAYS = b"".join(text(b"e%d" % n) + b"K\x00" for n in range(100_000))
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nested files": (nested_again_and_again, "no tensors in it"),
    "empty sets": (lambda: P2 + b"(" + b"\x8f" * 40_000_000 + b"l.", "unfold to more"),
    "empty dicts": (lambda: P2 + b"(" + b"}" * 40_000_000 + b"l.", "unfold to more"),
    "marks": (lambda: P2 + b"(" * 40_000_000, "unfold to more"),
    "memo": (lambda: P2 + b"N" + b"\x94" * 40_000_000 + b".", "unfold to more"),
    "references": (lambda: P2 + b"(" + b"ca\nb\n" * 8_000_000 + b"l.", "unfold to more"),
    "calls": (lambda: P2 + b"(ca\nb\nq\x00" + b"h\x00)R" * 8_000_000 + b"l.", "unfold to more"),
    "numbers": (lambda: P2 + b"(" + b"K\x01" * 30_000_000 + b"l.", "unfold to more"),
    "wide text": (lambda: P2 + b"X" + struct.pack("<I", 2**28) + b"a" * (2**28 - 4)
                  + "\U0001f600".encode() + b".", "is not latin-1"),
    "protocol 0": (lambda: b"(V" + b"a" * 2**28 + rb"\U0001f600" + b"\nl.", "latin-1"),
    "dict of a dict": (lambda: P2 + b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in
                       range(200_000)) + b"uq\x00(" + b"cbuiltins\ndict\n(h\x00tR" * 2000 + b"l.",
                       "unfold to more"),
    "one storage": (lambda: on_one_storage(9 * 512 * 512 * 9), "lie on top of each other"),
    "colliding keys": (lambda: torch_zip(P2 + b"}" + colliding_tuples(
        lambda raw: raw + (b"N" if raw[:1] == b"\x8a" else b"u."))), "no tensors in it"),
    "colliding elements": (lambda: torch_zip(P2 + b"\x8f" + colliding_tuples(
        lambda raw: raw + (b"" if raw[:1] == b"\x8a" else b"\x90."))), "holds a set"),
    "header": (lambda: safetensors(b'{"a":[' + b"[]," * 40_000_000 + b"[]]}"), "at most 16777216"),
    "entries": (empty_tensors, "more than 20000 tensors"),
    "a long name": (lambda: names(1, lambda n: "conv1." * 100_000 + "\n"), "name of 600001 char"),
    "long names": (lambda: names(20_000, lambda n: f"{n}." + "layer1.0." * 53 + "\n"), "no ResNet"),
    "many names": (lambda: names(200_000, str), "more than 20000 tensors"),
    "many encoders": (lambda: names(19_000, lambda n: f"{n}.layer1.0.conv1.weight"),
                      "more than 64 encoders"),
    "many wrappers": (lambda: names(19_000, lambda n: f"{n:b}.layer1.0.conv1.weight".replace(
        "0", "module.").replace("1", "_orig_mod.")), "more than 64 encoders|no ResNet"),
    "marks of families": (lambda: encoders(60, 300), "not a complete"),
    "zip records": (lambda: torch_zip(P2 + b"}.", {str(n): b"" for n in range(200_000)}),
                    "unfold to more|directory"),
    "haiku": (lambda: P2 + b"}(" + ARRAYS + b"uq\x010}" + text(b"experiment_state") + b"}"
              + text(b"online_params") + b"}(" + MODULES + b"uss.", "no tensors in it"),
    "lists of one dict": (lambda: P2 + b"}" + text(b"a") + b"(}q\x00" + b"h\x00" * 3_000_000
                          + b"ls.", "no tensors in it"),
    "constructors": (lambda: P2 + b"(ccopyreg\n__newobj__\nq\x00(" + b"h\x00" * 100_000 + b"tq\x01"
                     + b"h\x00h\x01R" * 5000 + b"l.", "unfold to more"),
    "instances of many parts": (lambda: P2 + b"(" + b"N" * 100_000 + b"tq\x000ca\nb\nq\x010}("
                                + b"".join(text(b"%d" % n) + b"h\x01h\x00R" for n in range(50_000))
                                + b"u.", "no tensors in it"),
    "bytes of a text": (lambda: P2 + text(b"a" * 2**20) + b"q\x00(" + b"c_codecs\nencode\n(h\x00"
                        b"tR" * 5000 + b"l.", "unfold to more"),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(BOMBS))
def test_a_small_file_takes_little_memory_and_time(kind: str, tmp_path: Path) -> None:
    make, expected = BOMBS[kind]
    path = tmp_path / "bomb"
    path.write_bytes(make())
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], cwd=ROOT, capture_output=True, text=True,
        check=False, env=dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"),
    )  # fmt: skip
    path.unlink()
    assert (ran.returncode, ran.stderr) == (0, "")
    assert any(words in ran.stdout for words in expected.split("|")), ran.stdout
    assert ran.stdout.count("\n") == 1 and len(ran.stdout) <= 400


def test_one_budget_for_all_that_a_file_holds() -> None:
    limits = Limits(1000)
    limits.take(2**27)
    limits.take(2000, steps=8_000_000)
    with pytest.raises(LimitError, match="unfold to more than the file holds"):
        limits.take(1)
    with pytest.raises(LimitError, match="more than 8,000,000 parts"):
        Limits(1000).take(0, steps=8_000_001)


@pytest.mark.parametrize("lacking", ["memory", "steps"])
def test_every_opcode_is_paid_for(lacking: str) -> None:
    content = pickle.dumps([(), {}], protocol=2)
    opcodes = [code.code for code, *_ in pickletools.genops(content)]
    price = sum(HEAVY_OPCODE_BYTES.get(ord(code), OPCODE_BYTES) for code in opcodes)
    limits = Limits(0)
    limits.memory, limits.steps = price, len(opcodes)
    assert SafeUnpickler(io.BytesIO(content), None, bytes, limits).load() == [(), {}]
    assert (limits.memory, limits.steps) == (0, 0)
    limits.memory, limits.steps = price, len(opcodes)
    setattr(limits, lacking, getattr(limits, lacking) - 1)
    with pytest.raises(LimitError):
        SafeUnpickler(io.BytesIO(content), None, bytes, limits).load()


def test_the_cpu_time_is_limited_last() -> None:
    with pytest.raises(LimitError, match="more than 1 seconds to read"), cpu_time_limit(1):
        while True:
            pickle.dumps(1)
