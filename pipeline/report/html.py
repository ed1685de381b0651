"""The report as one self-contained HTML page: plots, pictures and styles are inside it."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from pipeline.report.data import (
    BackboneSummary,
    Curve,
    ReportData,
    ResultRow,
    TaskSummary,
    further_summaries,
    main_metrics,
    summarise,
)
from pipeline.report.plots import (
    CSS_NAMES,
    Palette,
    bar_plot,
    colours,
    curve_series,
    line_plot,
    points,
    scatter_plot,
)
from pipeline.report.statistics import Spread, finite, rank_correlation
from pipeline.report.tables import paper_table, probe_table, task_table
from pipeline.report.text import (
    MARK,
    duration,
    findings,
    gpu_hours,
    indented,
    legend,
    metric_label,
    number,
    provenance,
    task_decimals,
    warnings,
)
from pipeline.stages.files import one_line

SHOWN = ("top1", "normalized_stable_rank", "effective_rank")
LOSSES = ("loss", "total_loss")
HOUSEKEEPING = {"lr", "time", "eta", "seconds", "memory"}
POSITIONS = {"step", "epoch", "iteration"}
MAX_PICTURES = 6
MAX_PICTURE_PX, MAX_WORDS, MAX_SPOKEN = 640, 300, 12

Plot = dict[str, Any]


@dataclass(frozen=True)
class Prediction:
    """A predictor against a task's main metric, over the backbones that have both.

    `correlation` is Spearman's; None where there are too few backbones to rank.
    """

    predictor: str
    task: str
    metric: str
    places: dict[str, tuple[float, Spread]]
    correlation: float | None

    @property
    def shown(self) -> bool:
        """Whether it belongs to the ones that are looked at first."""
        return self.predictor.endswith(SHOWN)

    @property
    def note(self) -> str:
        """The correlation in words, with the number of backbones it rests on."""
        n = len(self.places)
        if self.correlation is None:
            return f"{n} backbones: too few to rank" if n < 3 else f"{n} backbones: no ranking"
        text = f"{self.correlation:+.2f}".replace("-", "−")
        return f"rank correlation {text} over {n} backbones"


def predictors(data: ReportData) -> dict[str, dict[str, float]]:
    """Return {predictor: {backbone: value}}: probes, and the indicators at pretraining's end."""
    named = [
        (f"{row.probe} {metric}", row.backbone, value)
        for row in data.probes
        for metric, value in row.metrics.items()
    ]
    for curve in data.pretraining:
        last = curve.points[-1] if curve.points else {}
        named += [(key, curve.backbone, value) for key, value in last.items() if "rank" in key]
    values: dict[str, dict[str, float]] = {}
    for name, backbone, value in named:
        if finite(value) is not None:
            values.setdefault(name, {})[backbone] = value
    return values


def runs_of(line: BackboneSummary) -> Hashable:
    """Return what tells a backbone's finished fine-tunings on a task from those of others."""
    done = [row for row in line.rows if row.status == "done"]
    return frozenset(
        (r.seed, r.run_dir, r.signature, repr(r.metrics), repr(r.weights)) for r in done
    )


def predictions(data: ReportData) -> list[Prediction]:
    """Return every predictor against every task's main metric, two backbones at least.

    Backbones whose results are the same runs are one.
    """
    made = []
    for summary, (name, values) in product(summarise(data), predictors(data).items()):
        metric = main_metrics(summary.task)[0]
        once = {runs_of(line): line for line in reversed(summary.backbones)}.values()
        places = {
            line.backbone: (values[line.backbone], cell.spread)
            for line in reversed(once)
            for cell in line.cells
            if cell.metric == metric and cell.spread is not None and line.backbone in values
            if line.backbone not in summary.task.apart
        }
        x, y = [x for x, _ in places.values()], [spread.mean for _, spread in places.values()]
        title, label = summary.task.title, metric_label(metric)
        if len(places) >= 2:
            made.append(Prediction(name, title, label, places, rank_correlation(x, y)))
    return made


def answer(made: list[Prediction]) -> str:
    """Return one sentence on whether anything here predicts transfer."""
    ranked = [entry for entry in made if entry.correlation is not None]
    if not ranked:
        return "Fewer than three backbones have a cheap number and a result: nothing to rank yet."
    best = max(ranked, key=lambda entry: abs(entry.correlation or 0.0))
    n = len(best.places)
    caution = "" if n >= 8 else f"; {n} backbones are few, and many predictors were tried"
    return (
        f"The closest is {best.predictor} with {best.metric} of {best.task}: {best.note}{caution}."
    )


@cache
def _template() -> Template:
    """Return the page's template, which takes jinja as long to compile as a plot to draw."""
    environment = Environment(
        loader=PackageLoader("pipeline.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def html(data: ReportData) -> str:
    """The page. Names and reasons are untrusted and escaped by the template."""
    palette = colours(data.backbones, data.baseline)
    predicted = predictions(data)
    scatters: dict[str, list[Plot]] = {"shown": [], "folded": []}
    for entry in predicted:
        label = f"{entry.predictor} and {entry.metric}, {entry.task}"
        svg = scatter_plot(entry.places, palette, (entry.predictor, entry.metric))
        dots = [f"{name} {x:.3g} and {y.mean:.3g}" for name, (x, y) in entry.places.items()]
        plot = _plot(label, svg, entry.note, spoken(label, [*dots, entry.note]))
        scatters["shown" if entry.shown else "folded"].append(plot)
    page = _template().render(
        data=data,
        findings=findings(data),
        warnings=warnings(data),
        swatches={name: CSS_NAMES[colour] for name, colour in palette.items()},
        paper=paper_table(data),
        significant=MARK,
        tasks=[task_context(data, summary, palette) for summary in summarise(data)],
        prediction={"answer": answer(predicted), **scatters},
        probes=probe_table(data),
        pretraining=curve_plots(data.pretraining, pretraining_keys, palette),
        pretrained={curve.backbone for curve in data.pretraining},
        legend=legend(data),
        provenance=provenance(data),
        duration=duration,
        gpu_hours=gpu_hours,
        indented=indented,
    )
    return page + "\n"


def task_context(data: ReportData, summary: TaskSummary, palette: Palette) -> Plot:
    """A task's tables, plots and pictures."""
    task, decimals = summary.task, task_decimals(summary)
    curves = [curve for curve in data.finetuning if curve.task == task.name]
    rows = []
    for row in (row for line in summary.backbones for row in line.rows):
        values = row.metrics if row.status == "done" else {}
        rows.append((row, [number(finite(values.get(m)), decimals) for m in task.metrics]))
    bars = []
    for column, metric in enumerate(task.metrics):
        cells = {line.backbone: line.cells[column] for line in summary.backbones}
        label, parts = metric_label(metric), []
        for name, spread in ((name, cell.spread) for name, cell in cells.items()):
            text = "not measured" if spread is None else number(spread.mean, decimals)
            std = "" if spread is None or spread.std is None else number(spread.std, decimals)
            parts.append(f"{name} {text}{std and f' ± {std}'}")
        bars.append(_plot(label, bar_plot(cells, palette), "", spoken(label, parts)))
    return {
        "table": task_table(summary, data.baseline),
        "further": {
            title: task_table(further, data.baseline)
            for title, further in further_summaries(data, task).items()
        },
        "bars": bars,
        "curves": curve_plots(curves, lambda keys: finetuning_keys(keys, task.metrics), palette),
        "pictures": pictures(summary),
        "rows": rows,
    }


# --- plots ------------------------------------------------------------------------------------


def _plot(label: str, svg: bytes, note: str, words: str) -> Plot:
    return {"label": label, "note": note, "svg": inline_svg(svg, words)}


def spoken(what: str, parts: Sequence[str]) -> str:
    """What is seen in a plot, for those who do not see it."""
    more = [f"and {len(parts) - MAX_SPOKEN} more"] if len(parts) > MAX_SPOKEN else []
    return f"{what}: {', '.join([*parts[:MAX_SPOKEN], *more])}"


def curve_plots(
    curves: Sequence[Curve],
    order: Callable[[list[str]], tuple[list[str], list[str]]],
    palette: Palette,
) -> dict[str, list[Plot]]:
    """Plots of everything the curves hold, one per key: those shown, and those folded away."""
    logged = {key for curve in curves for point in curve.points for key in point}
    plots: dict[str, list[Plot]] = {"shown": [], "folded": []}
    for place, keys in zip(plots, order(sorted(logged - POSITIONS)), strict=True):
        for key in keys:
            series, most = curve_series(curves, key, palette)
            if series:
                note = f"means of up to {most} logged points" if most > 1 else ""
                label, ends = metric_label(key), []
                for curve in curves:
                    if y := points(curve, key)[1]:
                        seed = "" if curve.seed is None else f", seed {curve.seed}"
                        change = f"{y[0]:.3g} to {y[-1]:.3g}" if len(y) > 1 else f"{y[0]:.3g}"
                        ends.append(f"{curve.backbone}{seed} {change}")
                words = spoken(f"{label} over steps", ends)
                plots[place].append(_plot(label, line_plot(series), note, words))
    return plots


def pretraining_keys(keys: list[str]) -> tuple[list[str], list[str]]:
    """The loss first, then whatever is not housekeeping; the rest folded away."""
    folded = [key for key in keys if HOUSEKEEPING & set(re.split(r"[/_]", key))]
    return sorted((k for k in keys if k not in folded), key=lambda k: k not in LOSSES), folded


def finetuning_keys(keys: list[str], metrics: Sequence[str]) -> tuple[list[str], list[str]]:
    """The total loss and the task's metrics; single losses and the rest folded away."""
    shown = [key for key in (*LOSSES, *metrics) if key in keys]
    return shown, [key for key in keys if key not in shown]


def inline_svg(svg: bytes, label: str) -> Markup:
    """A plot's SVG as an element of an HTML page, scaled by the page's style."""
    text = "<svg" + svg.decode("utf-8").partition("<svg")[2]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.DOTALL)
    opening, rest = text.split(">", 1)
    box = re.search(r'viewBox="[-0-9. ]+"', opening)
    assert box is not None
    head = Markup('<svg {} role="img" aria-label="{}">').format(Markup(box[0]), label)
    return head + Markup(rest.replace("xlink:href", "href").strip())


# --- pictures ---------------------------------------------------------------------------------


def pictures(summary: TaskSummary) -> list[dict[str, Any]]:
    """Strips of validation pictures: ground truth, then each backbone's first finished seed."""
    rows: dict[str, ResultRow] = {}
    for row in (row for line in summary.backbones for row in line.rows):
        if row.status == "done" and row.pictures:
            rows.setdefault(row.backbone, row)
    truth = next((row.ground_truth for row in rows.values() if row.ground_truth), ())[:MAX_PICTURES]
    strips = [_strip("Ground truth", truth, truth)] if truth else []
    for row in rows.values():
        label = f"{row.backbone}, seed {row.seed}"
        strips.append(_strip(label, row.pictures, truth or row.pictures[:MAX_PICTURES]))
    return strips


def _strip(label: str, paths: Sequence[Path], columns: Sequence[Path]) -> dict[str, Any]:
    """One row; a picture stands under the ground truth of its name, or of its place."""
    by_name = {path.name: path for path in paths}
    named = any(column.name in by_name for column in columns)
    images = []
    for i, column in enumerate(columns):
        path = by_name.get(column.name) if named else (paths[i] if i < len(paths) else None)
        what = "Ground truth" if label == "Ground truth" else f"Detections of {label}"
        alt = f"{what}, picture {i + 1} of {len(columns)}: {picture_words(path) or column.name}"
        images.append({"src": picture_uri(path) if path else None, "alt": alt})
    return {"label": label, "images": images}


def picture_words(path: Path | None) -> str:
    """What the comment in a picture says to be drawn on it, where there is one."""
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        if path is not None:
            with Image.open(path, formats=("JPEG",)) as image:
                comment = image.info.get("comment", b"")
            return one_line(comment.decode("utf-8", errors="replace"))[:MAX_WORDS]
    return ""


def picture_uri(path: Path) -> str | None:
    """A JPEG or PNG as a data URI, at most MAX_PICTURE_PX wide and high; None if unreadable."""
    try:
        content = path.read_bytes()
        with Image.open(BytesIO(content), formats=("JPEG", "PNG")) as image:
            mime = f"image/{str(image.format).lower()}"
            image.load()
            if max(image.size) > MAX_PICTURE_PX:
                image.thumbnail((MAX_PICTURE_PX, MAX_PICTURE_PX))
                buffer = BytesIO()
                image.convert("RGB").save(buffer, format="JPEG", quality=88)
                content, mime = buffer.getvalue(), "image/jpeg"
    except (OSError, SyntaxError, ValueError):  # absent, or damaged in one of Pillow's ways
        return None
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"
