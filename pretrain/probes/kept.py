"""The probe of a training measured afterwards, on the states that the finished run kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pretrain.config.base import identity
from pretrain.config.pretrain import PretrainConfig
from pretrain.methods import build_model
from pretrain.probes.online import TrainingProbe
from pretrain.probes.probe import device
from pretrain.runtime.checkpoint import LAST, load_state
from pretrain.runtime.files import write_json
from pretrain.runtime.signals import EXIT_INTERRUPTED, StopRequest

LATE_PROBE = "probe.json"  # beside metrics.jsonl: settings, points by step, whether it is complete


def probe_kept_states(config: PretrainConfig, folder: Path) -> list[dict[str, float]]:
    """Return what `config.probe` would have measured at the epochs whose states are in `folder`.

    The last state is measured in any case.

    Each point is written to `probe.json` as it comes; what is there for the same probe stays.

    Raises:
        ValueError: the probe's data cannot be opened, or a state is damaged.
        SystemExit: a signal asked to stop; the code is 75.
    """
    assert config.probe is not None
    probe, path = TrainingProbe(config, config.probe), folder / LATE_PROBE
    content: dict[str, Any] = {"probe": identity(config.probe), "complete": False, "points": []}
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        content = stored if stored["probe"] == content["probe"] else content
    model, stop = build_model(config).to(device()), StopRequest()
    with stop:
        for state_path in [*sorted(folder.glob("epoch_*.pth")), folder / LAST]:
            state = load_state(state_path) if state_path.exists() else None
            if state is None:
                continue
            at_end, between = state_path.name == LAST, bool(state["step_in_epoch"])
            if not at_end and (between or state["epoch"] % probe.every_epochs):
                continue
            if state["step"] in [point["step"] for point in content["points"]]:
                continue
            model.load_state_dict(state["model"])
            metrics = probe.measure(model.encoder, stop)
            if stop.number:
                raise SystemExit(EXIT_INTERRUPTED)
            content["points"].append({"step": state["step"], **metrics})
            write_json(content, path)
    write_json(content | {"complete": True}, path)
    points: list[dict[str, float]] = content["points"]
    return points
