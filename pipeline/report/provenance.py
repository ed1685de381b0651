"""Where the numbers come from, as text: versions, hardware, code, wall time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.data import ReportData
from pipeline.report.statistics import finite


@dataclass(frozen=True)
class Entry:
    """One named piece of provenance: a text, a list of pairs, or (deeper) folded JSON."""

    name: str
    text: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    folded: str = ""


def provenance(data: ReportData) -> list[Entry]:
    """The provenance's entries; a name that ends in `_s` holds seconds."""
    entries = [entry(name, value) for name, value in data.provenance.items()]
    hours = sum((row.wall_time_s or 0.0) * row.num_gpus / 3600 for row in data.rows)
    entries.append(Entry("GPU hours of fine-tuning", text=f"{hours:.1f}"))
    times = {
        task.title: sum(r.wall_time_s or 0.0 for r in data.rows if r.task == task.name)
        for task in data.tasks
    }
    if any(times.values()):
        entries.append(entry("fine-tuning_time_s", times))
    return entries


def entry(name: str, value: Any) -> Entry:
    """One value of the provenance as text."""
    seconds = name.endswith("_s")
    title = name.removesuffix("_s").replace("_", " ")
    if isinstance(value, Mapping) and all(_is_flat(item) for item in value.values()):
        pairs = [(str(key), _scalar(item, seconds=seconds)) for key, item in value.items()]
        return Entry(title, pairs=tuple(pairs))
    if _is_flat(value):
        return Entry(title, text=_scalar(value, seconds=seconds))
    return Entry(title, folded=json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _is_flat(value: Any) -> bool:
    return not isinstance(value, (Mapping, list, tuple))


def _scalar(value: Any, *, seconds: bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if seconds and isinstance(value, (int, float)):
        return duration(float(value))
    return "–" if value is None else str(value)


def gpu_hours(wall_time_s: float | None, num_gpus: int) -> str:
    """`3.2`, or a dash where no GPU was used."""
    if wall_time_s is None or num_gpus == 0:
        return "–"
    return f"{wall_time_s * num_gpus / 3600:.1f}"


def duration(seconds: float | None) -> str:
    """`1 h 02 min`, `3 min 05 s` or `45 s`; a dash for None."""
    whole = finite(seconds)
    if whole is None:
        return "–"
    minutes, rest = divmod(round(whole), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
