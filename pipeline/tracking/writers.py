"""Writers of wandb, mlflow and trackio: one tracked run each, begun or gone on with.

A library is imported where its writer is made, which is in a process of its own. Whatever it raises
is its caller's to catch.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import importlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

Status = Literal["finished", "failed", "interrupted"]
MAX_PARAMS = 100  # that MLflow takes in one call
MAX_PARAM_CHARACTERS = 500
MLFLOW_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


@dataclass(frozen=True)
class TrackedRun:
    """A stage as trackers show it; `settings` are of the one tracker that a writer is for.

    `folder` is for what a library writes on this machine; `labels` tell the run among others,
    `table` is a CSV file that is shown.
    """

    settings: dict[str, Any]
    folder: str
    name: str
    kind: str
    labels: dict[str, Any]
    config: dict[str, Any]
    table: str | None = None

    @property
    def group(self) -> str:
        """Return what the seeds of one backbone on one task have in common."""
        parts = (self.labels.get(key) for key in ("backbone", "task", "probe"))
        return "/".join(str(part) for part in parts if part)


class Writer(NamedTuple):
    """One tracked run that is written to; `run_id` is what it is opened by again.

    `log(metrics, step)` writes what was measured at a step, which comes after all that were
    written. `show(table, step)` writes a CSV file in the place of the one before.
    `finish(status, summary, step)` writes the results of a run whose last step this was, sends
    everything, and ends.
    """

    run_id: str
    log: Callable[[dict[str, float], int], None]
    show: Callable[[Path, int], None]
    finish: Callable[[Status, dict[str, float], int], None]


def wandb_writer(run: TrackedRun, run_id: str | None) -> Writer:
    """Open a run of Weights & Biases; offline each start is a folder of its own, of one run."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    wandb: Any = importlib.import_module("wandb")
    run_id = run_id or secrets.token_hex(4)
    tracked = wandb.init(
        **run.settings,
        dir=run.folder,
        id=run_id,
        resume="allow",
        name=run.name,
        group=run.group or None,
        job_type=run.kind,
        config=run.labels | run.config,
        settings=wandb.Settings(console="off", silent=True),
    )

    def log(metrics: dict[str, float], step: int) -> None:
        tracked.log(metrics, step=step, commit=True)  # else it is kept in memory until the next

    def show(table: Path, step: int) -> None:
        columns, rows = cells(table)
        tracked.log({table.stem: wandb.Table(columns=columns, data=rows)}, step=step, commit=True)

    def finish(status: Status, summary: dict[str, float], step: int) -> None:
        tracked.summary.update(summary)
        if status == "interrupted":
            tracked.mark_preempting()
        tracked.finish(exit_code=0 if status == "finished" else 1)

    return Writer(run_id, log, show, finish)


def mlflow_writer(run: TrackedRun, run_id: str | None) -> Writer:
    """Open a run of MLflow: on a server, in a database or in a folder."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    entities: Any = importlib.import_module("mlflow.entities")
    client = mlflow_client(run)
    if run_id is None:
        run_id = _new_mlflow_run(client, run)
        params = [
            entities.Param(_mlflow_name(key), str(value)[:MAX_PARAM_CHARACTERS])
            for key, value in flat(run.config)
        ]
        for start in range(0, len(params), MAX_PARAMS):
            client.log_batch(run_id, params=params[start : start + MAX_PARAMS])
    else:
        client.update_run(run_id, status="RUNNING")
    tracked: str = run_id

    def log(metrics: dict[str, float], step: int) -> None:
        now = round(time.time() * 1000)
        batch = [
            entities.Metric(_mlflow_name(name), value, now, step) for name, value in metrics.items()
        ]
        client.log_batch(tracked, metrics=batch)

    def show(table: Path, step: int) -> None:
        client.log_artifact(tracked, str(table))

    def finish(status: Status, summary: dict[str, float], step: int) -> None:
        if summary:
            log(summary, step)
        client.set_terminated(tracked, MLFLOW_STATUS[status])

    return Writer(tracked, log, show, finish)


def mlflow_client(run: TrackedRun) -> Any:
    """Return a client of the store that settings or environment name, else of one beside the runs.

    A new SQLite file is filled by one process at a time; MLflow does not see to that.
    """
    mlflow: Any = importlib.import_module("mlflow")
    uri = mlflow_uri(run)
    if uri.startswith("file:") or ":" not in uri:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    with contextlib.ExitStack() as stack:
        if uri.startswith("sqlite:"):
            file = stack.enter_context(Path(run.folder, ".mlflow.lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        return mlflow.MlflowClient(tracking_uri=uri)


def mlflow_uri(run: TrackedRun) -> str:
    """Return the place of a run's store."""
    uri = run.settings["tracking_uri"] or os.environ.get("MLFLOW_TRACKING_URI")
    return str(uri or f"sqlite:///{run.folder}/mlflow.db")


def _new_mlflow_run(client: Any, run: TrackedRun) -> str:
    """Make a run, and its experiment where there is none."""
    name, artifacts = run.settings["experiment"], None
    if mlflow_uri(run).startswith("sqlite:"):  # else they would be in the working directory
        artifacts = Path(run.folder, "mlartifacts").as_uri()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            client.create_experiment(name, artifact_location=artifacts)
        except Exception:
            if client.get_experiment_by_name(name) is None:  # else another stage has just made it
                raise
        experiment = client.get_experiment_by_name(name)
    tags = {"kind": run.kind, "group": run.group, **run.labels}
    tags = {key: str(value) for key, value in tags.items() if value != ""}
    made = client.create_run(experiment.experiment_id, run_name=run.name, tags=tags)
    return str(made.info.run_id)


def trackio_writer(run: TrackedRun, run_id: str | None) -> Writer:
    """Open a run of Trackio, which knows it by its name: that has an end which no other has."""
    trackio: Any = importlib.import_module("trackio")
    name = run_id or f"{run.name}-{secrets.token_hex(3)}"
    tracked = trackio.init(
        **run.settings,
        name=name,
        group=run.group or None,
        config={"kind": run.kind} | run.labels | run.config,
        resume="must" if run_id else "never",
        embed=False,
    )

    def log(metrics: dict[str, float], step: int) -> None:
        tracked.log(metrics, step=step)

    def show(table: Path, step: int) -> None:
        columns, rows = cells(table)
        tracked.log({table.stem: trackio.Table(columns=columns, data=rows)}, step=step)

    def finish(status: Status, summary: dict[str, float], step: int) -> None:
        if summary:
            log(summary, step)
        trackio.finish()  # and not the run's own, which leaves it to be finished again at exit

    return Writer(name, log, show, finish)


WRITERS: dict[str, Callable[[TrackedRun, str | None], Writer]] = {
    "wandb": wandb_writer,
    "mlflow": mlflow_writer,
    "trackio": trackio_writer,
}


def flat(config: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings, by names with dots.

    >>> dict(flat({"loss": {"name": "w-mse", "groups": [1, 2]}}))
    {'loss.name': 'w-mse', 'loss.groups': [1, 2]}
    """
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def cells(table: Path) -> tuple[list[str], list[list[Any]]]:
    """Return the columns of a CSV file and its rows: numbers, None for what is empty, text."""

    def value(text: str) -> Any:
        try:
            return float(text) if text else None
        except ValueError:
            return text

    with table.open(encoding="utf-8", newline="") as file:
        columns, *rows = csv.reader(file)
    return columns, [[value(text) for text in row] for row in rows]


def _mlflow_name(name: str) -> str:
    """Return a name of which MLflow takes every character."""
    return re.sub(r"[^\w\-. /]", "_", name)
