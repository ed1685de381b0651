"""Stage `convert`: a checkpoint becomes detectron2 weights, and the proof that nothing was lost."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transfer.checkpoints import Backbone, read_backbone
from transfer.config.stages import ConvertConfig
from transfer.resnet.loaded import not_loaded
from transfer.resnet.names import to_detectron2
from transfer.verify import Comparison, c4_model, compare_features, fpn_model, load_quietly

MAX_RELATIVE_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class ConversionReport:
    """What `OUTPUT.json` holds beside the weights."""

    source: str
    sha256: str
    output_sha256: str
    container: str
    format: str
    family: str
    encoder: str
    other_encoders: tuple[str, ...]
    arch: str
    architecture: dict[str, Any]
    num_entries: int
    input: dict[str, Any]
    detectron2: dict[str, Any]
    largest_feature_difference: float
    verification: dict[str, Any]
    notes: tuple[str, ...]
    unknown_references: tuple[str, ...]


def convert_checkpoint(
    source: Path,
    target: Path,
    *,
    format: str | None = None,
    encoder: str | None = None,
    plain: Path | None = None,
) -> ConversionReport:
    """Convert `source` into detectron2's `target` (.pkl) with a companion `.json`.

    Nothing is written to `target` unless detectron2's own loader, given the new file, fills every
    entry of an FPN and a C4 backbone, and computes the features that torchvision computes from the
    source (largest relative difference at most 1e-4). An older `target` stays until its
    replacement is ready, then goes before the companion changes: at no time does one stand beside
    the companion of another. `output_sha256` in the companion is that of `target`. `plain` is where
    the same weights go under torchvision's names, as pretraining writes its `backbone.pth`.

    Raises:
        ValueError: the source holds no complete backbone, or the proof failed.
    """
    if target.suffix != ".pkl":
        raise ValueError(f"{target}: wanted a name ending in .pkl; detectron2 reads by that name")
    for written in (target, target.with_suffix(".json")):
        if written.is_dir() or (source.exists() and written.exists() and source.samefile(written)):
            raise ValueError(f"{written}: is a folder or INPUT itself, wanted a file to write")
    _check_folder(target.parent)
    _check_companion(target.with_suffix(".json"))
    with one_thread():
        backbone = read_backbone(source, format=format, encoder=encoder)
        return _convert(source, backbone, target, plain)


def _check_folder(folder: Path) -> None:
    """Raise ValueError where a file stands in the place of a folder."""
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise ValueError(f"{part}: is a file, wanted a folder to write OUTPUT into")


def _check_companion(path: Path) -> None:
    """Raise ValueError where there is a file that no earlier conversion wrote."""
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not {"sha256", "detectron2", "verification"} <= set(found):
        raise ValueError(
            f"{path}: is there and is no companion of converted weights; it would be overwritten: "
            "move it, or choose another OUTPUT"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: so little work gains nothing by more, and loses much on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _convert(
    source: Path, backbone: Backbone, target: Path, plain: Path | None
) -> ConversionReport:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp.pkl")
    companion = target.with_suffix(".json")
    try:
        model = write_detectron2_pickle(backbone, temporary)
        verification = prove(source, backbone, temporary, model)
        report = _report(source, temporary, backbone, verification)
        temporary_companion = temporary.with_suffix(".json")
        text = json.dumps(asdict(report), indent=2, allow_nan=False)
        temporary_companion.write_text(text + "\n", "utf-8")
        if plain is not None:
            write_plain(backbone, plain)
        target.unlink(missing_ok=True)
        temporary_companion.replace(companion)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_suffix(".json").unlink(missing_ok=True)
    return report


def prove(
    source: Path, backbone: Backbone, weights: Path, model: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the numbers that show a converted file to be complete and right.

    Raises:
        ValueError: it is not.
    """
    fpn = fpn_model(backbone)
    load_quietly(fpn, weights)
    compared = compare_features(backbone, fpn)
    difference = compared.difference
    if not difference <= MAX_RELATIVE_DIFFERENCE:
        raise ValueError(
            f"{source}: converted features differ by {difference:.2g} of their size, wanted at "
            f"most {MAX_RELATIVE_DIFFERENCE:.0e}; nothing was written"
        )
    loaded = {"fpn": _loaded(source, "FPN", fpn, model)}
    del fpn
    if backbone.architecture.depth >= 50:  # detectron2's C4 head is made of bottleneck blocks
        c4 = c4_model(backbone)
        load_quietly(c4, weights)
        loaded["c4"] = _loaded(source, "C4", c4, model)
    return {
        "largest_feature_difference": difference,
        "limit": MAX_RELATIVE_DIFFERENCE,
        "precision": compared.precision,
        "entries_loaded": loaded,
        "not_checked": _not_checked(backbone, compared),
    }


def _not_checked(backbone: Backbone, compared: Comparison) -> list[str]:
    """Return in words what the proof could not cover, or covered in another way."""
    words = []
    if backbone.architecture.depth < 50:
        words.append("proved with FPN only: detectron2's C4 head takes ResNet-50 and deeper")
    if compared.precision != "float32":
        words.append(
            f"its features overflow float32, so they were compared in {compared.precision}"
        )
    if compared.silent:
        words.append(f"all zero on the test input, so not compared: {', '.join(compared.silent)}")
    return words


def _loaded(source: Path, kind: str, detector: nn.Module, model: Mapping[str, Any]) -> int:
    lost = not_loaded(detector, model)
    if lost:
        raise ValueError(
            f"{source}: detectron2's checkpointer leaves {len(lost)} entries of a {kind} backbone "
            f"unfilled, first {lost[0]}; nothing was written"
        )
    return len(model)


def _report(
    source: Path, output: Path, backbone: Backbone, verification: dict[str, Any]
) -> ConversionReport:
    return ConversionReport(
        source=source.name,
        sha256=_sha256(source),
        output_sha256=_sha256(output),
        container=backbone.container,
        format=backbone.format,
        family=backbone.format,
        encoder=backbone.encoder,
        other_encoders=backbone.other_encoders,
        arch=backbone.arch,
        architecture=asdict(backbone.architecture),
        num_entries=len(backbone.state_dict),
        input=backbone.input,
        detectron2=backbone.detectron2,
        largest_feature_difference=verification["largest_feature_difference"],
        verification=verification,
        notes=(*backbone.notes, *verification["not_checked"]),
        unknown_references=backbone.unknown,
    )


def write_detectron2_pickle(backbone: Backbone, path: Path) -> dict[str, Any]:
    """Write the file that detectron2's checkpointer reads, names of its own, and return them."""
    model = {
        to_detectron2(name): value.detach().numpy() for name, value in backbone.state_dict.items()
    }
    content = {
        "model": model,
        "__author__": "whitening-transfer-benchmark",
        "matching_heuristics": True,
    }
    with path.open("wb") as file:
        pickle.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    return model


def write_plain(backbone: Backbone, path: Path) -> None:
    """Write the weights as pretraining writes its `backbone.pth`, whole or not at all.

    `arch` says where the stride is not torchvision's, so that nobody builds the wrong network.
    """
    caffe = "_stride_in_1x1" if backbone.architecture.stride_in_1x1 else ""
    content = {
        "state_dict": backbone.state_dict,
        "arch": backbone.arch + caffe,
        "method": backbone.method,
        "input": backbone.input,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def run_stage(
    config: dict[str, Any], inputs: dict[str, Path], output_dir: Path
) -> dict[str, float]:
    """Entry point for the pipeline: converts `inputs["checkpoint"]`, or `config["checkpoint"]`.

    Beside detectron2's `backbone.pkl` it writes `backbone.pth`, which probes read.
    """
    source = inputs.get("checkpoint") or Path(config["checkpoint"])
    report = convert_checkpoint(
        source,
        output_dir / "backbone.pkl",
        format=config["format"],
        encoder=config["encoder"],
        plain=output_dir / "backbone.pth",
    )
    return {
        "num_entries": report.num_entries,
        "largest_feature_difference": report.largest_feature_difference,
    }


def check_stage(config: dict[str, Any]) -> list[str]:
    """Return what would stop the conversion of an existing checkpoint."""
    if "checkpoint" not in config:
        return []
    options = ConvertConfig(format=config["format"], encoder=config["encoder"])
    try:
        read_backbone(Path(config["checkpoint"]), format=options.format, encoder=options.encoder)
    except ValueError as error:
        return [str(error)]
    return []


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
