"""Numbers that need no boxes, indicators and probes, ranked against detection AP."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from pipeline.report.data import ReportData, main_metrics, summarise
from pipeline.report.statistics import Spread, finite, rank_correlation
from pipeline.report.text import metric_label

SHOWN = ("top1", "normalized_stable_rank", "effective_rank")


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


def predictions(data: ReportData) -> list[Prediction]:
    """Return every predictor against every task's main metric, two backbones at least."""
    made = []
    for summary, (name, values) in product(summarise(data), predictors(data).items()):
        metric = main_metrics(summary.task)[0]
        places = {
            line.backbone: (values[line.backbone], cell.spread)
            for line in summary.backbones
            for cell in line.cells
            if cell.metric == metric and cell.spread is not None and line.backbone in values
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
