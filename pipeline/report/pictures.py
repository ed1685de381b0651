"""Validation pictures of a report, as strips of data URIs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.report.data import TaskSummary

MAX_PICTURES = 6
MAX_PICTURE_PX = 640


def pictures(summary: TaskSummary) -> list[dict[str, Any]]:
    """Strips of validation pictures: ground truth, then each backbone's first finished seed."""
    first = [
        next((r for r in line.rows if r.status == "done" and r.pictures), None)
        for line in summary.backbones
    ]
    rows = [row for row in first if row is not None]
    truth = next((row.ground_truth for row in rows if row.ground_truth), ())[:MAX_PICTURES]
    strips = [_strip("Ground truth", truth, truth)] if truth else []
    for row in rows:
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
        alt = f"{what}: picture {i + 1} of {len(columns)}, {column.name}"
        images.append({"src": picture_uri(path) if path else None, "alt": alt})
    return {"label": label, "images": images}


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
