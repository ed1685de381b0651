"""Stage `convert`: a checkpoint becomes detectron2 weights, and the proof that nothing was lost."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transfer.checkpoints import Backbone, read_backbone
from transfer.config import ConvertConfig
from transfer.keymap import detectron2_keys, to_detectron2
from transfer.verify import largest_feature_difference

MAX_RELATIVE_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class ConversionReport:
    """What `OUTPUT.json` holds beside the weights."""

    source: str
    sha256: str
    format: str
    encoder: str
    arch: str
    num_entries: int
    input: dict[str, Any]
    detectron2: dict[str, Any]
    largest_feature_difference: float


def convert_checkpoint(
    source: Path, target: Path, *, format: str | None = None, encoder: str | None = None
) -> ConversionReport:
    """Convert `source` into detectron2's `target` (.pkl) with a companion `.json`.

    Nothing exists at `target` unless detectron2's own loader, given the new file, computes the
    features that torchvision computes from the source (largest relative difference at most 1e-4).

    Raises:
        ValueError: the source holds no complete backbone, or the features differ.
    """
    if target.suffix != ".pkl":
        raise ValueError(f"{target}: wanted a name ending in .pkl; detectron2 reads by that name")
    backbone = read_backbone(source, format=format, encoder=encoder)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp.pkl")
    companion = target.with_suffix(".json")
    try:
        write_detectron2_pickle(backbone, temporary)
        difference = largest_feature_difference(backbone, temporary)
        if not difference <= MAX_RELATIVE_DIFFERENCE:
            raise ValueError(
                f"{source}: converted features differ by {difference:.2g} of their size, wanted at "
                f"most {MAX_RELATIVE_DIFFERENCE:.0e}; nothing was written"
            )
        report = ConversionReport(
            source=source.name,
            sha256=_sha256(source),
            format=backbone.format,
            encoder=backbone.encoder,
            arch=backbone.arch,
            num_entries=len(backbone.state_dict),
            input=backbone.input,
            detectron2=detectron2_keys(backbone.arch, backbone.input),
            largest_feature_difference=difference,
        )
        temporary_companion = temporary.with_suffix(".json")
        temporary_companion.write_text(json.dumps(asdict(report), indent=2) + "\n", "utf-8")
        temporary_companion.replace(companion)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_suffix(".json").unlink(missing_ok=True)
    return report


def write_detectron2_pickle(backbone: Backbone, path: Path) -> None:
    """Write the file that detectron2's checkpointer reads: names of its own, numpy arrays."""
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


def run_stage(
    config: dict[str, Any], inputs: dict[str, Path], output_dir: Path
) -> dict[str, float]:
    """Entry point for the pipeline: converts `inputs["checkpoint"]`, or `config["checkpoint"]`."""
    source = inputs.get("checkpoint") or Path(config["checkpoint"])
    report = convert_checkpoint(
        source, output_dir / "backbone.pkl", format=config["format"], encoder=config["encoder"]
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
