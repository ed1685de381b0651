"""Export of a backbone: a folder that timm, torchvision, transformers or detectron2 load."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transfer.checkpoints import Backbone, read_backbone
from transfer.checkpoints.other_files import weight_files
from transfer.checkpoints.stem_input import WARNING
from transfer.config.convert import ConvertConfig
from transfer.convert import convert_checkpoint, read_as_stated, sha256_of_all
from transfer.files import one_line, refusal, whole_folder
from transfer.hub.card import Export, card
from transfer.hub.formats import WEIGHTS, format_fault, write_weights
from transfer.hub.run_facts import detectron2_proof, weights_and_facts
from transfer.hub.snapshot import place_of

CARD, PICKLE = "README.md", "backbone.pkl"
MAX_NOTES = 12
MAX_DIFFERENCE = 1e-5


def check_target(target: Path) -> None:
    """Raise ValueError where a folder cannot be written, or would be written over."""
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{target}: is there and holds files; wanted a new folder to write")
    for part in (target, *target.absolute().parents):
        if (part.exists() or part.is_symlink()) and not part.is_dir():
            raise ValueError(f"{part}: is a file, wanted a folder to write")


def export_backbone(
    source: Path,
    target: Path,
    format: str,
    *,
    family: str | None = None,
    encoder: str | None = None,
) -> Export:
    """Write the backbone of a run or checkpoint as a folder, with a model card.

    The folder is written whole or not at all, and only if what was written gives back every tensor
    bit for bit, and the features that torchvision computes from the source (largest relative
    difference at most 1e-5, of the format's own library where that is installed).

    Args:
        source: a finished stage's or pretraining's folder, or any checkpoint.
        target: the folder to write; none of that name may hold anything.
        format: `timm`, `torchvision`, `transformers` or `detectron2`.
        family: the checkpoint's family; recognised from the content where left out.
        encoder: the encoder, or the prefix before its names, where the file holds several.

    Returns:
        What the model card is made of.

    Raises:
        ValueError: the source holds no complete backbone, the library builds no such network, the
            proof failed, or `target` holds something.

    Example:
        >>> import tempfile, torch, torchvision
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source, target = Path(folder) / "resnet18.pth", Path(folder) / "out"
        ...     torch.save(torchvision.models.resnet18().state_dict(), source)
        ...     export = export_backbone(source, target, "torchvision")
        ...     sorted(path.name for path in target.iterdir())
        ['README.md', 'config.json', 'model.safetensors']
        >>> export.name
        'resnet18'
    """
    check_target(target)
    weights, facts = weights_and_facts(source)
    backbone = read_as_stated(weights, ConvertConfig(format=family, encoder=encoder))
    if (fault := format_fault(backbone, format)) is not None:
        raise ValueError(refusal(weights, fault))
    with whole_folder(target) as folder:
        if format == "detectron2":
            report = convert_checkpoint(weights, folder / PICKLE, format=family, encoder=encoder)
            proof = detectron2_proof(report.verification)
        else:
            write_weights(backbone, format, folder)
            proof = _in_library(weights, backbone, format, folder)
            proof += facts.in_detectron2
        proof = (_read_back(weights, backbone, folder), *proof)
        digest, place = sha256_of_all(weight_files(weights)), place_of(weights)
        place = f"{weights.parent.name}/{place}" if facts.of_run else place
        given = {"--family": family, "--encoder": encoder}
        options = shlex.join(word for pair in given.items() if pair[1] for word in map(str, pair))
        export = Export(backbone, format, facts, place, digest, proof, options)
        (folder / CARD).write_text(card(export), encoding="utf-8", errors="replace")
    return export


def summary(export: Export, target: Path) -> list[str]:
    """Return what was written, what of it is not known, and how to upload it, as lines of text."""
    facts = export.facts
    numbers = sum(row.get("mean") is not None for row in facts.summary)
    notes = list(export.backbone.notes[:MAX_NOTES])
    if export.backbone.input["format"] != "RGB" and export.format != "detectron2":
        notes.append(f"{WARNING}channels go in as BGR, which {export.format} does not know")
    recipe = "with" if facts.recipe else "without"
    known = f"{numbers} means over seeds" if numbers else f"no means over seeds: {facts.no_numbers}"
    lines = [
        *export.proof,
        *(f"note: {note}" for note in notes),
        f"model card: {recipe} the recipe of the pretraining; {known}",
    ]
    head = f"{target}: {export.backbone.arch} in the format of {export.format}"
    upload = shlex.join(["upload", f"ORG/{export.name}", str(target)])
    todo = f"fill in the licence in its {CARD}, then: hf {upload}"
    older = f"huggingface_hub before 1.0: huggingface-cli {upload}"
    shown = [one_line(head), *(f"  {one_line(line)}" for line in lines)]
    return [*shown, f"{todo}  ({older})"]


def _read_back(source: Path, backbone: Backbone, folder: Path) -> str:
    """Return a sentence for the card: the folder gives back what was written, bit for bit."""
    import torch  # noqa: PLC0415  (what is refused needs no torch)

    again = read_backbone(folder)
    differing = [
        name
        for name, value in backbone.state_dict.items()
        if not torch.equal(again.state_dict[name], value)
    ]
    same = (again.input, again.architecture) == (backbone.input, backbone.architecture)
    if differing or not same:
        what = differing[0] if differing else "the input or the architecture"
        raise ValueError(f"{source}: read back, {what} is another; nothing was written")
    return (
        f"Read again by the converter, all {len(backbone.state_dict)} tensors are those of the "
        "source bit for bit, with the same input."
    )


def _in_library(source: Path, backbone: Backbone, format: str, folder: Path) -> tuple[str, ...]:
    """Return the sentence that the format's library computes torchvision's features of the folder.

    Raises:
        ValueError: it does not.
    """
    if importlib.util.find_spec(format) is None:
        return (f"{format} is not installed where this was written: not loaded with it.",)
    import torch  # noqa: PLC0415

    from transfer.features import STAGES, largest_difference, reference  # noqa: PLC0415

    images, expected = reference(backbone)
    with _quiet(), torch.no_grad():
        features = _FEATURES[format](backbone.arch, folder, images)
    difference = largest_difference(expected, dict(zip(STAGES, features, strict=True)))
    if not difference <= MAX_DIFFERENCE:
        raise ValueError(
            f"{source}: features of {format} from the folder differ by {difference:.2g} of their "
            f"size, wanted at most {MAX_DIFFERENCE:.0e}; nothing was written"
        )
    return (
        f"{format} {importlib.metadata.version(format)} loads the folder; its features of four "
        f"stages against those of the source: largest relative difference {difference:.1e}.",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep libraries from logging; what they load is checked by value."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _of_timm(arch: str, folder: Path, images: Any) -> list[Any]:
    import timm  # noqa: PLC0415

    place = str(folder / WEIGHTS)
    model = timm.create_model(
        arch, features_only=True, out_indices=(1, 2, 3, 4), checkpoint_path=place
    )
    return list(model.to(images.dtype).eval()(images))


def _of_torchvision(arch: str, folder: Path, images: Any) -> list[Any]:
    import torch  # noqa: PLC0415
    import torchvision  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    model: Any = torchvision.models.get_model(arch, weights=None)
    model.fc = torch.nn.Identity()
    model.load_state_dict(load_file(folder / WEIGHTS))
    model.to(images.dtype).eval()
    features: list[Any] = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        layer.register_forward_hook(lambda _, __, output: features.append(output))
    model(images)
    return features


def _of_transformers(arch: str, folder: Path, images: Any) -> list[Any]:
    del arch
    from transformers import ResNetBackbone  # noqa: PLC0415
    from transformers.utils.logging import (  # noqa: PLC0415
        disable_progress_bar,
        enable_progress_bar,
    )

    disable_progress_bar()
    try:
        model = ResNetBackbone.from_pretrained(folder, local_files_only=True)
    finally:
        enable_progress_bar()
    return list(model.to(images.dtype).eval()(images).feature_maps)


_FEATURES: dict[str, Callable[[str, Path, Any], list[Any]]] = {
    "timm": _of_timm,
    "torchvision": _of_torchvision,
    "transformers": _of_transformers,
}
