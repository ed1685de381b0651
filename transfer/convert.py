"""Stage `convert`: a checkpoint becomes detectron2 weights, and the proof that nothing was lost."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from transfer.checkpoints import Backbone, read_backbone
from transfer.checkpoints.other_files import weight_files
from transfer.checkpoints.read import AUTHOR, CAFFE2_SUFFIX, THIS_PROJECT, with_input
from transfer.checkpoints.stem_input import WARNING, mismatch
from transfer.config.convert import ConvertConfig, StatedInput, check_places
from transfer.files import locked_folder, one_line, sha256_of, whole_file
from transfer.hub.snapshot import place_of, revision_of
from transfer.resnet import not_loaded, to_detectron2

MAX_RELATIVE_DIFFERENCE = 1e-4
MAX_LISTED, MAX_SHOWN = 12, 200  # of a list on the terminal, and of a text out of the file
MAX_LINE = 390
MAX_NAMED = 3  # other encoders, in a warning


@dataclass(frozen=True)
class ConversionReport:
    """What `OUTPUT.json` holds beside the weights.

    `revision` is the commit of a checkpoint of the Hugging Face hub, empty for any other.
    `warnings` are what a reader of the backbone's numbers should know: the backbone's, and which
    encoder was taken of several.
    """

    source: str
    revision: str
    sha256: str
    output_sha256: str
    container: str
    format: str
    family: str
    method: str
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
    warnings: tuple[str, ...]
    unknown_references: tuple[str, ...]


def convert_checkpoint(
    source: Path,
    target: Path,
    *,
    format: str | None = None,
    encoder: str | None = None,
    plain: Path | None = None,
    stated: StatedInput | None = None,
) -> ConversionReport:
    """Convert `source` into detectron2's `target` (.pkl) with a companion `.json`.

    Nothing is written to `target` unless detectron2's own loader, given the new file, fills every
    entry of an FPN and a C4 backbone, and computes the features that torchvision computes from the
    source (largest relative difference at most 1e-4). An older `target` stays until its
    replacement is ready, then goes before the companion changes: at no time does one stand beside
    the companion of another. `output_sha256` in the companion is that of `target`.

    Args:
        source: a checkpoint, as `read_backbone` reads it.
        target: the file to write, its name ending in .pkl; its folder is made.
        format: the family, one of `families.FORMATS`; recognised from the content where left out.
        encoder: the encoder, or the prefix before its names, where the file holds several.
        plain: where the same weights go under torchvision's names, as pretraining writes its
            `backbone.pth`; nowhere if left out.
        stated: how the network was fed, over what file and family say; the notes hold it.

    Returns:
        What the companion holds.

    Raises:
        ValueError: the source holds no complete backbone, or the proof failed.

    Example:
        >>> import tempfile, torch, torchvision
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source, target = Path(folder) / "resnet18.pth", Path(folder) / "resnet18.pkl"
        ...     torch.save(torchvision.models.resnet18().state_dict(), source)
        ...     report = convert_checkpoint(source, target)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['resnet18.json', 'resnet18.pkl', 'resnet18.pth']
        >>> report.arch, report.num_entries, report.largest_feature_difference < 1e-4
        ('resnet18', 120, True)
    """
    check_places(source, target)
    _check_companion(target.with_suffix(".json"))
    backbone = read_as_stated(source, ConvertConfig(format=format, encoder=encoder, input=stated))
    with _one_thread():
        return _convert(source, backbone, target, plain)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: so little work gains nothing by more, and loses much on busy cores."""
    import torch  # noqa: PLC0415  (what is refused needs no torch, and is refused at once)

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def read_as_stated(source: Path, config: ConvertConfig) -> Backbone:
    """Return the backbone in a checkpoint, fed as the config states.

    What it does not state stays as file and family say, mean and std turned to the order stated.
    Notes and warnings begin with one where the stem's statistics speak against the input.

    Raises:
        ValueError: as `read_backbone`; or a stride is stated that no layer of the network has.
    """
    backbone = read_backbone(source, format=config.format, encoder=config.encoder)
    stated, architecture = config.input, backbone.architecture
    notes, warnings = backbone.notes, backbone.warnings
    if stated is not None:
        if stated.stride_in_1x1 and architecture.depth < 50:
            raise ValueError(
                f"{source}: input.stride_in_1x1 is stated, but {backbone.arch} has no 1x1 "
                "convolution before its 3x3; remove it"
            )
        stride = stated.stride_in_1x1
        values = stated.model_dump(mode="json", exclude_none=True)
        told = ", ".join(f"{key} {values[key]}" for key in values)
        backbone = replace(
            backbone,
            input=with_input(backbone.input, stated.order, stated.mean, stated.std),
            architecture=architecture if stride is None
            else replace(architecture, stride_in_1x1=stride),
        )  # fmt: skip
        line = f"input as the user states it: {told}"
        notes, warnings = (*notes, line), (*warnings, line)
    is_checked = stated is not None or backbone.format != THIS_PROJECT
    if is_checked and (warning := mismatch(backbone.state_dict, backbone.input)):
        notes, warnings = (warning, *notes), (warning.removeprefix(WARNING), *warnings)
    return replace(backbone, notes=notes, warnings=warnings)


def _check_companion(path: Path) -> None:
    """Raise ValueError where there is a file that no earlier conversion wrote."""
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        content = None
    fields = {"sha256", "detectron2", "verification"}
    if not isinstance(content, dict) or not fields <= set(content):
        raise ValueError(
            f"{path}: is there and is no companion of converted weights; it would be overwritten: "
            "move it, or choose another OUTPUT"
        )


def _convert(
    source: Path, backbone: Backbone, target: Path, plain: Path | None
) -> ConversionReport:
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        locked_folder(target.parent) as lock,
        whole_file(target) as weights,
        whole_file(target.with_suffix(".json")) as companion,
    ):
        model = write_detectron2_pickle(backbone, weights)
        verification = prove(source, backbone, weights, model)
        report = _report(source, weights, backbone, verification)
        text = json.dumps(asdict(report), indent=2, allow_nan=False)
        companion.write_text(text + "\n", "utf-8")
        if plain is not None:
            write_plain(backbone, plain)
        lock()  # so that another conversion's names cannot come in between
        target.unlink(missing_ok=True)  # then the companion gets its name, and the weights last
    return report


def _report(
    source: Path, output: Path, backbone: Backbone, verification: dict[str, Any]
) -> ConversionReport:
    taken, *others = (
        one_line(name)[:MAX_SHOWN] or "(no prefix)"
        for name in (backbone.encoder, *backbone.other_encoders)
    )
    more = f" and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
    choice = f"encoder {taken} is taken; also there: {', '.join(others[:MAX_NAMED])}{more}"
    return ConversionReport(
        source=place_of(source),
        revision=revision_of(source),
        sha256=sha256_of_all(weight_files(source)),
        output_sha256=sha256_of(output),
        container=backbone.container,
        format=backbone.format,
        family=backbone.format,
        method=backbone.method,
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
        warnings=(*backbone.warnings, *([choice] if others else [])),
        unknown_references=backbone.unknown,
    )


def summary(report: ConversionReport, target: Path) -> list[str]:
    """Return what was recognised and which keys it demands, as lines that a terminal can print."""

    def short(text: str, most: int = MAX_SHOWN) -> str:
        line = one_line(text)
        return line if len(line) <= most else line[: most - 3] + "..."

    lines = [
        f"{short(str(target))}: {report.arch}, {report.num_entries} entries, "
        f"format {report.format}; "
        f"largest relative feature difference {report.largest_feature_difference:.1e}",
        f"  encoder {short(report.encoder) or '(no prefix)'}",
    ]
    lines += [f"  note: {short(note, MAX_LINE)}" for note in report.notes[:MAX_LISTED]]
    for label, entries in (
        ("also there", report.other_encoders),
        ("unknown, not loaded", report.unknown_references),
    ):
        if entries:
            shown = [short(entry) for entry in entries[:MAX_LISTED]]
            while len(", ".join(shown)) > MAX_LINE - 50:  # room for the label and what is left out
                shown.pop()
            more = len(entries) - len(shown)
            tail = [f"and {more} more"] if more else []
            lines.append(f"  {label}: {', '.join([*shown, *tail])}")
    return lines + [f"  {key} {value}" for key, value in report.detectron2.items()]


def prove(
    source: Path, backbone: Backbone, weights: Path, model: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the numbers that show a converted file to be complete and right.

    Raises:
        ValueError: it is not.
    """
    from transfer.verify import (  # noqa: PLC0415  (imports detectron2)
        c4_model,
        compare_features,
        fpn_model,
        load_quietly,
    )

    builders = {"fpn": fpn_model, "c4": c4_model}
    not_checked = []
    if backbone.architecture.depth < 50:
        del builders["c4"]  # it is made of bottleneck blocks
        not_checked.append("proved with FPN only: detectron2's C4 head takes ResNet-50 and deeper")
    entries_loaded = {}
    for kind, build in builders.items():
        detector = build(backbone)
        load_quietly(detector, weights)
        if kind == "fpn":
            compared = compare_features(backbone, detector)
            if not compared.difference <= MAX_RELATIVE_DIFFERENCE:
                raise ValueError(
                    f"{source}: converted features differ by {compared.difference:.2g} of their "
                    f"size, wanted at most {MAX_RELATIVE_DIFFERENCE:.0e}; nothing was written"
                )
        lost = not_loaded(detector, model)
        if lost:
            raise ValueError(
                f"{source}: detectron2's checkpointer leaves {len(lost)} entries of a "
                f"{kind.upper()} backbone unfilled, first {lost[0]}; nothing was written"
            )
        entries_loaded[kind] = len(model)
        del detector
    if compared.precision != "float32":
        not_checked.append(
            f"its features overflow float32, so they were compared in {compared.precision}"
        )
    if compared.silent:
        stages = ", ".join(compared.silent)
        not_checked.append(f"all zero on the test input, so not compared: {stages}")
    return {
        "largest_feature_difference": compared.difference,
        "limit": MAX_RELATIVE_DIFFERENCE,
        "precision": compared.precision,
        "entries_loaded": entries_loaded,
        "not_checked": not_checked,
    }


def write_detectron2_pickle(backbone: Backbone, path: Path) -> dict[str, Any]:
    """Write the file that detectron2's checkpointer reads, names of its own, and return them."""
    model = {
        to_detectron2(name): value.detach().numpy() for name, value in backbone.state_dict.items()
    }
    content = {
        "model": model,
        "__author__": AUTHOR,
        "matching_heuristics": True,
        "input": backbone.input,  # as the companion says it, for a file that lost its own
        "architecture": asdict(backbone.architecture),
        "family": backbone.format,
        "method": backbone.method,
    }
    _write_to_disk(pickle.dump, content, path)
    return model


def write_plain(backbone: Backbone, path: Path) -> None:
    """Write the weights as pretraining writes its `backbone.pth`, whole or not at all.

    `arch` says where the stride is not torchvision's, so that nobody builds the wrong network.
    """
    caffe = CAFFE2_SUFFIX if backbone.architecture.stride_in_1x1 else ""
    content = {
        "state_dict": backbone.state_dict,
        "arch": backbone.arch + caffe,
        "method": backbone.method,
        "input": backbone.input,
    }
    import torch  # noqa: PLC0415  (what is refused needs no torch)

    with whole_file(path) as temporary:
        _write_to_disk(torch.save, content, temporary)


def _write_to_disk(dump: Callable[[Any, IO[bytes]], None], content: Any, path: Path) -> None:
    with path.open("wb") as file:
        dump(content, file)
        file.flush()
        os.fsync(file.fileno())


def run_stage(
    config: dict[str, Any], inputs: dict[str, Path], output_dir: Path
) -> dict[str, float]:
    """Entry point for the pipeline: converts `inputs["checkpoint"]`, or `config["checkpoint"]`.

    Beside detectron2's `backbone.pkl` it writes `backbone.pth`, which probes read.
    """
    source = inputs.get("checkpoint") or Path(config["checkpoint"])
    options = _options(config)
    report = convert_checkpoint(
        source,
        output_dir / "backbone.pkl",
        format=options.format,
        encoder=options.encoder,
        plain=output_dir / "backbone.pth",
        stated=options.input,
    )
    for warning in report.warnings:
        logging.getLogger(__name__).warning("%s: %s", source, warning)
    return {
        "num_entries": report.num_entries,
        "largest_feature_difference": report.largest_feature_difference,
    }


def check_stage(config: dict[str, Any]) -> list[str]:
    """Return what would stop the conversion of an existing checkpoint."""
    try:
        demanded_keys(config)
    except ValueError as error:
        return [str(error)]
    return []


def demanded_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return the detectron2 keys that an existing checkpoint demands of every task.

    Raises:
        ValueError: it cannot be converted.
    """
    if "checkpoint" not in config:
        return {}
    return read_as_stated(Path(config["checkpoint"]), _options(config)).detectron2


def _options(config: dict[str, Any]) -> ConvertConfig:
    """Return the part of a stage's settings that says how a checkpoint is read."""
    return ConvertConfig.model_validate(
        {key: config.get(key) for key in ConvertConfig.model_fields}
    )


def sha256_of_all(files: list[Path]) -> str:
    """Return the sha256 of a file; of an index and its shards, that of theirs in their order."""
    digests = [sha256_of(file) for file in files]
    return digests[0] if len(files) == 1 else sha256("".join(digests).encode()).hexdigest()
