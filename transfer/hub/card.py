"""The model card of an exported backbone: README.md with the hub's metadata in front."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from transfer.checkpoints import Backbone
from transfer.checkpoints.families import UNLISTED
from transfer.files import printable
from transfer.hub.formats import loading_code, unit
from transfer.hub.run_facts import RunFacts

MAX_NAME = 96  # of a model on the hub
PROJECT = "the whitening transfer benchmark"
KINDS = {"bbox": ("Box", "object-detection"), "segm": ("Mask", "image-segmentation")}
NO_LICENCE = "license: unknown  # to be filled in before you publish, such as apache-2.0\n"
ORDER_WARNING = (
    "**The channels go in as BGR.** Preprocessing of timm, torchvision and transformers gives RGB: "
    "turn the image, `x.flip(1)`, before you normalise it."
)


@dataclass(frozen=True)
class Export:
    """What a card is about: weights, their format, their source, and the proof of both.

    `options` are words of the command line that said how the source was read.
    """

    backbone: Backbone
    format: str
    facts: RunFacts
    source: str
    sha256: str
    proof: tuple[str, ...]
    options: str = ""

    @property
    def method(self) -> str:
        """How the backbone was trained, empty where neither file nor family says it."""
        return "" if self.backbone.method == UNLISTED else self.backbone.method

    @property
    def name(self) -> str:
        """A name for the model that the hub takes: `w-mse-resnet18`, or the file's."""
        arch, file = self.backbone.arch, re.sub(r"\W+", "-", self.source.rpartition("/")[2])
        stem = self.method or self.facts.name or re.sub(r"-(pth|pt|pkl|safetensors)\b", "", file)
        stem = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9_.]+", "-", stem))
        stem = stem[: MAX_NAME - len(arch) - 1].strip("-.")
        return stem if arch in stem else f"{stem}-{arch}".strip("-")


def card(export: Export) -> str:
    """Return README.md; what is not known of the backbone is said to be so."""
    parts = [
        f"# {_text(export.name)}",
        f"A {_text(export.backbone.arch)} without its classifier, "
        + (f"pretrained with {_text(export.method)}" if export.method else "")
        + ("" if export.method else "of a method that the checkpoint does not say")
        + f". Written by {PROJECT} in the format of {export.format}.",
        _section("Load it", f"```python\n{loading_code(export.backbone, export.format)}\n```"),
        _section("Input", _input(export)),
        _section("How it was made", _made(export)),
        _section("Numbers", _numbers(export.facts)),
        _section("Proof", "\n".join(f"- {_text(line)}" for line in export.proof)),
        _section("Reproduce", _reproduce(export)),
        _section(
            "Licence", "To be filled in, here and in the metadata above, by who publishes it."
        ),
    ]
    return _front_matter(export) + "\n" + "\n\n".join(parts) + "\n"


def _front_matter(export: Export) -> str:
    """Return the metadata block, which huggingface_hub's ModelCard reads."""
    tags = ["self-supervised-learning", "resnet", "backbone", export.method]
    content = {
        "library_name": export.format,
        "pipeline_tag": "image-feature-extraction",
        "tags": [tag for tag in tags if tag],
        "model-index": [{"name": export.name, "results": _results(export.facts)}],
    }
    return f"---\n{NO_LICENCE}{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n"


def _results(facts: RunFacts) -> list[dict[str, Any]]:
    """Return the `model-index` entries: a mean with its spread and seeds, or a probe's value."""
    entries: list[dict[str, Any]] = []
    for row in _measured(facts):
        task, metric = str(row.get("task")), str(row["metric"])
        name, kind = KINDS.get(metric.partition("/")[0], ("", "object-detection"))
        std: Any = row.get("std")
        args = {"std": round(std, 4) if _is_number(std) else None, "n": row["n"]}
        measured: dict[str, Any] = {
            "type": metric,
            "name": f"{name} {metric.rpartition('/')[2]}, mean over seeds (n={row['n']})".strip(),
            "value": round(row["mean"], 4),
            "args": args | {"seeds": list(facts.seeds.get(task, []))},
        }
        _add(entries, kind, task, facts.tasks.get(task, task), measured)
    for row, metric, value in _probed(facts):
        probe = str(row.get("probe"))
        measured = {"type": metric, "name": metric, "value": round(value, 4)}
        _add(entries, "image-classification", probe, f"probe {probe}", measured)
    return entries


def _add(
    entries: list[dict[str, Any]], kind: str, data: str, name: str, measured: dict[str, Any]
) -> None:
    """Add a metric to the entry of its task and data, which is made where it is not there."""
    head = {"task": {"type": kind}, "dataset": {"type": data, "name": name}}
    for entry in entries:
        if head == {key: entry[key] for key in head}:
            entry["metrics"].append(measured)
            return
    entries.append({**head, "metrics": [measured]})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _measured(facts: RunFacts) -> Iterable[dict[str, Any]]:
    for row in facts.summary:
        if _is_number(row.get("mean")) and isinstance(row.get("n"), int) and "metric" in row:
            yield row


def _probed(facts: RunFacts) -> Iterable[tuple[dict[str, Any], str, float]]:
    for row in facts.probes:
        metrics = row.get("metrics")
        for metric, value in metrics.items() if isinstance(metrics, dict) else ():
            if _is_number(value):
                yield row, str(metric), value


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _text(value: object) -> str:
    """Return text of a file as Markdown shows it: on one line, its marks shown and not obeyed."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(value))


def _input(export: Export) -> str:
    stated = export.backbone.input
    lines = [
        "| | of pixels from 0 to 255 | of pixels from 0 to 1 |",
        "| --- | --- | --- |",
        f"| mean | {_listed(stated['pixel_mean'])} | {_listed(unit(stated['pixel_mean']))} |",
        f"| std | {_listed(stated['pixel_std'])} | {_listed(unit(stated['pixel_std']))} |",
        "",
        f"Three channels in the order {stated['format']}, mean and std in the same order.",
    ]
    if stated["format"] != "RGB" and export.format != "detectron2":
        lines += ["", ORDER_WARNING]
    return "\n".join(lines)


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _made(export: Export) -> str:
    facts, backbone = export.facts, export.backbone
    lines = [f"- method: {_text(export.method or 'not known')}"]
    if facts.recipe:
        lines += [
            f"- data: {_text('; '.join(facts.data) or 'not known')}",
            f"- seed of the pretraining: {_text(facts.recipe.get('seed'))}",
            f"- processes: {facts.num_processes or 1}",
        ]
    else:
        lines.append("- recipe, data and seed of the pretraining: not known")
    code = facts.provenance.get("code")
    if isinstance(code, dict) and code.get("commit"):
        dirty = ", with changes that were not committed" if code.get("dirty") else ""
        lines.append(f"- code: commit {_text(code['commit'])}{dirty}")
    packages = facts.provenance.get("packages")
    if isinstance(packages, dict):
        versions = ", ".join(f"{name} {packages[name]}" for name in packages)
        lines.append(f"- versions: {_text(versions)}")
    lines += [
        f"- source of these weights: {_text(export.source)}, sha256 {_text(export.sha256)}, "
        f"recognised as {_text(backbone.format)}"
    ]
    if facts.origin:
        lines.append(f"- converted from: {_text(facts.origin)}")
    lines += [f"- note: {_text(note)}" for note in backbone.notes]
    if facts.recipe:
        recipe = {"method": export.method or "not known", **facts.recipe}
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        lines += ["", "The recipe, with every key:", "", f"```yaml\n{_fenced(text)}```"]
    return "\n".join(lines)


def _fenced(text: str) -> str:
    """Return text that cannot end the code block that it stands in."""
    return re.sub(r"^(\s*)(```|~~~)", r"\1 \2", text, flags=re.MULTILINE).replace("```", "` ` `")


def _numbers(facts: RunFacts) -> str:
    lines: list[str] = []
    measured, probed = list(_measured(facts)), list(_probed(facts))
    if not measured:
        lines.append(f"Detection: not measured here ({_text(facts.no_numbers)}).")
    else:
        against = f" | difference to {_text(facts.baseline)}" if facts.baseline else ""
        rule = " | ---:" if against else ""
        lines += [
            "Detection, in percent, mean ± sample standard deviation over seeds of fine-tuning:",
            "",
            f"| task | metric | value | seeds{against} |",
            f"| --- | --- | ---: | ---{rule} |",
        ]
    for row in measured:
        task, metric = str(row.get("task")), str(row["metric"])
        kind = KINDS.get(metric.partition("/")[0], (metric.partition("/")[0], ""))[0]
        seeds = ", ".join(map(str, facts.seeds.get(task, []))) or str(row["n"])
        planned = row.get("planned")
        short = f" ({row['n']} of {planned})" if planned != row["n"] else ""
        cells = [facts.tasks.get(task, task), f"{kind} {metric.rpartition('/')[2]}",
                 _spread(row), f"{seeds}{short}"]  # fmt: skip
        difference = row.get("difference")
        if facts.baseline:
            cells.append(_spread(difference, "+") if isinstance(difference, dict) else "")
        lines.append(f"| {' | '.join(map(_text, cells))} |")
    if measured:
        lines += ["", "All of one pretraining: the spread is that of fine-tuning alone."]
    if probed:
        lines += ["", "Probes of frozen features, in percent, of one pretraining (no spread):", "",
                  "| probe | metric | value |", "| --- | --- | ---: |"]  # fmt: skip
        lines += [f"| {_text(row.get('probe'))} | {_text(metric)} | {value:.1f} |"
                  for row, metric, value in probed]  # fmt: skip
    else:
        lines += ["", "Probes: not measured here."]
    lines += ["", *(f"- {_text(remark)}" for remark in facts.remarks)] if facts.remarks else []
    return "\n".join(lines)


def _spread(row: dict[str, Any], sign: str = "") -> str:
    """Return `45.8 ± 0.2`, the mean alone where there is no spread."""
    mean, std = row.get("mean"), row.get("std")
    if not _is_number(mean):
        return ""
    return f"{mean:{sign}.1f} ± {std:.1f}" if _is_number(std) else f"{mean:{sign}.1f}"


def _reproduce(export: Export) -> str:
    facts, commands = export.facts, []
    place = export.source
    if facts.command:
        commands.append(facts.command)
    elif facts.recipe:
        place = "runs/again"
        data = facts.recipe.get("data")
        named = isinstance(data, dict) and "name" in data
        commands += [
            "# recipe.yaml: the recipe above; FOLDER: the images",
            f"python tools/pretrain.py --config-file recipe.yaml --output-dir {place} "
            f"data.root=FOLDER{'' if named else ' data.name=images'}",
        ]
    if facts.command:
        kind = "pretrain" if facts.recipe else "convert"
        place = f"RUNS/{facts.pipeline}/{kind}/{facts.name}-SIGNATURE"
    command = f"python tools/export_backbone.py {place} OUT --format {export.format}"
    commands.append(f"{command} {export.options}".rstrip())
    return f"```sh\n{_fenced(chr(10).join(printable(line) for line in commands))}\n```"
