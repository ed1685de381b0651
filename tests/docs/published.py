"""Tables of docs/published-numbers.md; `python -m tests.docs.published` writes them anew."""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from pipeline.config.references import (
    BUILT_IN,
    DetectionEntry,
    DetectionTable,
    ProbeTable,
    References,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "published-numbers.md"
BEGIN, END = "<!-- tables -->\n", "<!-- end -->\n"
MEASURES = ("linear", "augmented_linear", "knn")


def linked(source: str) -> str:
    """A source with its address."""
    source = re.sub(r"github\.com/([\w.-]+/[\w.-]+)", r"[\1](https://github.com/\1)", source)
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def triple(means: tuple[float | None, ...] | None, stds: tuple[float | None, ...] | None) -> str:
    cells = []
    for mean, std in zip(means or (None,) * 3, stds or (None,) * 3, strict=True):
        cells.append("" if mean is None else f"{mean}" + ("" if std is None else f" ± {std}"))
    return " | ".join(cells)


def row(entry: DetectionEntry, with_masks: bool) -> str:
    search = {True: " §", None: " ?", False: ""}[entry.search]
    masks = [triple(entry.mask, entry.mask_std)] if with_masks else []
    inferred = f" *({', '.join(entry.inferred)})*" if entry.inferred else ""
    cells = [
        entry.label + search + inferred,
        triple(entry.box, entry.box_std),
        *masks,
        entry.source,
    ]
    return f"| {' | '.join(cells)} |"


def detection(table: DetectionTable) -> Iterator[str]:
    masks = any(entry.mask for entry in table.rows)
    inferred = f" *Concluded: {', '.join(table.inferred)}.*" if table.inferred else ""
    yield from (f"### {table.data}, {table.detector}, {table.schedule}", "")
    yield from (f"`{table.name}`: {table.protocol}.{inferred}", "")
    kinds = ("box", "mask") if masks else ("box",)
    columns = [f"{kind} {measure}" for kind in kinds for measure in ("AP50", "AP", "AP75")]
    yield f"| backbone | {' | '.join(columns)} | source |"
    yield f"| --- |{' ---: |' * len(columns)} --- |"
    yield from (row(entry, masks) for entry in table.rows)
    yield ""


def probe(table: ProbeTable) -> Iterator[str]:
    used = [name for name in MEASURES if any(getattr(entry, name) for entry in table.rows)]
    yield from (f"### {table.data}, {table.arch}", "", f"Top-1: {table.protocol}.", "")
    yield f"| backbone | {' | '.join(used).replace('_', ' ')} | source |"
    yield f"| --- |{' ---: |' * len(used)} --- |"
    for entry in table.rows:
        values = [str(getattr(entry, name) or "") for name in used]
        yield f"| {entry.label} | {' | '.join(values)} | {entry.source} |"
    yield ""


def page() -> str:
    """The page with its tables written anew; what stands around them is kept."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    content = References.model_validate(yaml.safe_load(BUILT_IN.read_text("utf-8")))
    lines = ["", "## Sources", "", "| source | where |", "| --- | --- |"]
    lines += [f"| {name} | {linked(text)} |" for name, text in content.sources.items()]
    lines += ["", "## Detection", ""]
    lines += [line for table in content.detection for line in detection(table)]
    lines += ["## Probes", ""]
    lines += [line for table in content.probes for line in probe(table)]
    return before + BEGIN + "\n".join(lines) + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
