"""Files and folders that are no checkpoint: what each is, and what to give in its place."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable
from hashlib import sha256
from itertools import islice
from pathlib import Path

from transfer.checkpoints.families import check_format
from transfer.files import near_path, refusal

SAVE = "save model.state_dict() with torch.save where it loads"
MAGIC: tuple[tuple[bytes, str], ...] = (
    (rb"PK\x05\x06", "an empty zip archive"),
    (rb"\x89HDF", f"an HDF5 (Keras, MATLAB) file; {SAVE}, under torch's names"),
    (rb"\x93NUMPY", "a single numpy array; wanted a dict of tensors, saved with torch.save"),
    (rb"\x1f\x8b", "a gzip archive; unpack it first"),
    (rb"BZh", "a bzip2 archive; unpack it first"),
    (rb"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (rb"\xfd7zXZ", "an xz archive; unpack it first"),
    (rb"\x5d\x00\x00.{2}\xff\xff", "an lzma archive; unpack it first"),
    (rb"\x28\xb5\x2f\xfd", "a zstandard archive; unpack it first"),
    (rb"\x04\x22\x4d\x18", "an lz4 archive; unpack it first"),
    (rb"Rar!", "a rar archive; unpack it first"),
    (rb"\x78[\x01\x5e\x9c\xda]", "zlib-compressed, as joblib writes it; load it with joblib, then "
     "save its dict of tensors with torch.save"),
    (rb"version https://git-lfs",
     "a Git LFS pointer; the weights themselves were not downloaded: git lfs pull"),
    (rb"GGUF", f"a GGUF file; {SAVE}"),
    (rb"....TFL3", f"a TensorFlow Lite model; {SAVE}"),
    (rb"\x08[\x01-\x1f][\x12\x1a\x22\x3a\x42]",
     f"an ONNX model (or other protobuf), a graph without torch's names; {SAVE}"),
    (rb"MATLAB 5\.0", "a MATLAB file; wanted a dict of tensors, saved with torch.save"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|%PDF|RIFF", "a picture, film or document"),
    (rb"\x7fELF|MZ|\xcf\xfa\xed\xfe", "a program or library"),
    (rb"SQLite format", "an SQLite database"),
    (rb"(\xef\xbb\xbf)?\s*<", "a web page or XML in place of the file (asked to sign in, or not "
     "found); download the file itself"),
)  # fmt: skip
_MAGIC = [(re.compile(pattern, re.DOTALL), kind) for pattern, kind in MAGIC]
WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
OF_STAGES = ("backbone.pth", "backbone.pkl")  # weights that this project writes
ON_THE_HUB = "hf:/"  # how a place on the Hugging Face hub begins, as a Path has it
OF_TRANSFORMERS = ("config.json", "preprocessor_config.json")  # settings beside, also timm's
OF_DETECTRON2 = ("effective_config.yaml", "config.yaml")
FAMILY_TABLES = tuple(Path(__file__).with_name(name) for name in ("families.py", "key_patterns.py"))
FOLDERS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((".metadata",), "a distributed checkpoint; join it with python -m "
     "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pth"),
    (("zero_to_fp32.py",), "a DeepSpeed checkpoint; join it with the zero_to_fp32.py in it"),
    (("saved_model.pb",), f"a TensorFlow SavedModel; {SAVE}, under torch's names"),
    (("data.pkl", "data"), "a torch file that was unpacked; give the file itself, or pack the "
     "folder again with zip -0 -r"),
    (("blobs", "snapshots"), "a repository in the hub's cache; give the folder of one commit in "
     "its snapshots"),
)  # fmt: skip
TYPES = {
    stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip
MAX_INDEX_BYTES = 2**24
MAX_SHARDS = 1000
MAX_LISTED = 1000


def weight_files(path: Path) -> list[Path]:
    """Return the files in which a checkpoint's weights lie, most often `path` alone.

    For a folder as transformers, timm or a stage of this project writes it they are those of the
    weights in it, for the index of shards (a JSON text with a `weight_map`) the index and its
    shards.

    Raises:
        ValueError: there is no such file, it is no file, or a shard is missing.
    """
    if path.is_dir():
        names = [entry.name for entry in islice(path.iterdir(), MAX_LISTED)]
        places = (*WEIGHT_FILES, *OF_STAGES)
        inside = next((name for name in places if (path / name).is_file()), None)
        dangling = next((name for name in places if (path / name).is_symlink()), None)
        if inside is None and dangling is not None:
            raise ValueError(f"its {dangling} is a link to nothing; download it again")
        if inside is None:
            raise ValueError(f"{_folder(names)}")
        path = path / inside
    elif not path.exists() and str(path).startswith(ON_THE_HUB):
        raise ValueError(
            "is on the Hugging Face hub, which only tools/convert_to_detectron2.py and "
            "tools/export_backbone.py read; convert it first, or hf download ORG/NAME --revision "
            "COMMIT --local-dir FOLDER, and give the file or folder"
        )
    elif not path.exists():
        raise ValueError(f"no such checkpoint file{near_path(path)}")
    elif not path.is_file():
        kind = TYPES.get(stat.S_IFMT(path.stat().st_mode), "of an unknown type")
        raise ValueError(f"is {kind}, wanted a checkpoint file; copy it into a file first")
    names = shards_of(path)
    for name in names:
        if Path(name).name != name or not (path.parent / name).is_file():
            raise ValueError(f"its shard {name[:100]} is not beside it; download all shards")
    return [path, *(path.parent / name for name in names)]


def files_read(path: Path) -> list[Path]:
    """Return every file that decides what a checkpoint gives: its weights, and settings beside.

    Raises:
        ValueError: as `weight_files`.
    """
    weights = weight_files(path)
    first = weights[0]
    beside = [first.with_name(name) for name in (*OF_TRANSFORMERS, *OF_DETECTRON2)]
    if first.suffix == ".pkl":
        beside.append(first.with_suffix(".json"))  # a conversion's companion
    return [*weights, *(file for file in beside if file.is_file())]


def tables_sha256() -> str:
    """Return the sha256 of the tables of families and spellings, which decide what a file gives."""
    return sha256(b"".join(path.read_bytes() for path in FAMILY_TABLES)).hexdigest()


def check_present(path: Path, format: str | None = None) -> None:
    """Raise ValueError for what reading refuses before it reads: no such family, no checkpoint."""
    check_format(format)
    try:
        weight_files(path)
    except ValueError as error:
        raise ValueError(refusal(path, error)) from None


def _folder(names: list[str]) -> str:
    """Return what a folder is and what to do with it."""
    if any(name.endswith(".distcp") for name in names):
        names = [*names, ".metadata"]
    for marks, kind in FOLDERS:
        if all(mark in names for mark in marks):
            return f"is {kind}"
    listed = ", ".join(sorted(names)[:5]) or "nothing"
    return f"is a folder, wanted the checkpoint file in it; it holds {listed[:150]}"


def shards_of(path: Path) -> list[str]:
    """Return the names of the shards that an index of them lists, none for other files.

    Raises:
        ValueError: its list is none of names, or absurdly long.
    """
    with path.open("rb") as file:
        start = file.read(64).lstrip()
        if not start.startswith(b"{") or path.stat().st_size > MAX_INDEX_BYTES:
            return []
        file.seek(0)
        try:
            index = json.loads(file.read())
        except (ValueError, RecursionError):
            return []
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict):
        return []
    if not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError("an index of shards without names of files in its weight_map")
    names = sorted(set(shards.values()))
    if len(names) > MAX_SHARDS:
        raise ValueError(f"an index of {len(names)} shards, wanted at most {MAX_SHARDS}")
    return names


def kind_of_file(start: bytes) -> str | None:
    """Return what a file is by its first bytes, None where it may be a checkpoint."""
    return next((kind for pattern, kind in _MAGIC if pattern.match(start)), None)


def kind_of_text(start: bytes) -> str | None:
    """Return what a text is by its first bytes, None for bytes that are no text."""
    text = start.decode("utf-8", "ignore")
    if len(text.encode()) < len(start) - 3 or not all(c.isprintable() or c.isspace() for c in text):
        return None
    what = "a JSON text" if text.lstrip().startswith(("{", "[")) else "a text file"
    return f"{what} that starts {text[:24]!r}, wanted the weights"


def kind_of_zip(names: Iterable[str]) -> str | None:
    """Return what a zip file is by the names of its records, None for that of torch.save."""
    names = [name for name in names if not name.startswith("__MACOSX/")]
    bases = {name.split("/")[-1] for name in names}
    if "constants.pkl" in bases:
        return f"a TorchScript archive; {SAVE} (torch.jit.load reads it)"
    if bases & {"archive_format", "serialized_exported_program.json"}:
        return f"a program exported by torch.export (.pt2); {SAVE}"
    if "data.pkl" in bases:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return ("an archive of numpy arrays (.npz); wanted a dict of tensors: save it with "
                "torch.save, under torch's names")  # fmt: skip
    if "model.weights.h5" in bases:
        return f"a Keras model; {SAVE}, under torch's names"
    listed = ", ".join(name for name in names if not name.endswith("/"))[:100] or "nothing"
    return f"a zip archive of {listed}; unpack it, and give the checkpoint in it"
