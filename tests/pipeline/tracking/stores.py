"""Runs as the libraries of trackers wrote them, read with their own readers; stubs of a library."""

import importlib.metadata
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

MISSING = {
    "wandb": "",
    "mlflow": "",
    "trackio": " (it wants pillow below 13, and constraints.txt has 13)",
}
MLFLOW = """
import json, sys
from mlflow import MlflowClient
client, answer = MlflowClient(tracking_uri=sys.argv[1]), []
for experiment in client.search_experiments():
    for run in client.search_runs([experiment.experiment_id]):
        history = {name: [[each.step, each.value] for each in
                          client.get_metric_history(run.info.run_id, name)]
                   for name in run.data.metrics}
        paths = [each.path for each in client.list_artifacts(run.info.run_id)]
        answer.append([experiment.name, run.info.run_id, run.info.run_name, run.info.status,
                       run.data.tags, run.data.params, history, paths])
print(json.dumps(answer))
"""


@dataclass
class Shown:
    """A run in a tracker; `points` are steps and values by metric."""

    project: str
    run_id: str
    name: str
    status: Any = None
    group: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    points: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)

    def take(self, step: int, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            if isinstance(value, int | float) and not name.startswith("_"):
                self.points.setdefault(name, []).append((step, value))


def need(tracker: str) -> None:
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed{MISSING[tracker]}")
    if tracker == "wandb":
        version = importlib.metadata.version(tracker).split(".")[:2]
        if tuple(map(int, version)) < (0, 31):
            pytest.skip("wandb before 0.31 does not show what its files hold")


def shown_in(tracker: str, folder: Path) -> list[Shown]:
    """The runs that a tracker has of a pipeline whose folder this is, by name."""
    runs = {"wandb": in_wandb, "mlflow": in_mlflow, "trackio": in_trackio}[tracker](folder)
    return sorted(runs, key=lambda run: run.name)


def in_wandb(folder: Path) -> list[Shown]:
    runs: dict[str, Shown] = {}
    for path in sorted((folder / "wandb").glob("offline-run-*")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        environment = os.environ | {"WANDB_MODE": "offline"}
        answer = subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment
        )
        for record in map(json.loads, answer.stdout.splitlines()):
            content = record.get(record["type"])
            if record["type"] == "run":
                config = {k: v for k, v in content["config"]["update"].items() if k[0] != "_"}
                run = runs.setdefault(
                    content["run_id"],
                    Shown(content["project"], content["run_id"], content["display_name"]),
                )
                run.group, run.config = content.get("run_group"), config
            elif record["type"] == "history":
                run.take(content["step"]["num"], content["item"])
                run.tables += [key for key in content["item"] if key == "results._type"]
            elif record["type"] == "summary":
                final = content.get("update", {})
                run.take(-1, {k: v for k, v in final.items() if k.startswith("final/")})
            elif record["type"] == "exit":
                run.status = {0: "finished"}.get(content["exit_code"], "not finished")
    return list(runs.values())


def in_mlflow(folder: Path) -> list[Shown]:
    database = folder / "mlflow.db"
    uri = f"sqlite:///{database}" if database.exists() else str(folder / "mlruns")
    answer = subprocess.run(
        [sys.executable, "-c", MLFLOW, uri], check=True, capture_output=True, text=True,
        env=os.environ | {"MLFLOW_ALLOW_FILE_STORE": "true"},
    )  # fmt: skip
    runs = []
    for project, run_id, name, status, tags, params, history, paths in json.loads(answer.stdout):
        points = {key: [(step, value) for step, value in each] for key, each in history.items()}
        word = "finished" if status == "FINISHED" else "not finished"
        run = Shown(project, run_id, name, word, tags.get("group"), params, points, paths)
        runs.append(run)
    return runs


def in_trackio(folder: Path) -> list[Shown]:
    runs: dict[str, Shown] = {}
    for path in Path(os.environ["TRACKIO_DIR"]).glob("*.db"):
        with sqlite3.connect(path) as database:
            for name, config in database.execute("select run_name, config from configs"):
                content = json.loads(config)
                runs[name] = Shown(path.stem, name, name.rpartition("-")[0], "finished")
                runs[name].group, runs[name].config = content.get("_Group"), content
            for name, step, metrics in database.execute(
                "select run_name, step, metrics from metrics order by id"
            ):
                content = json.loads(metrics)
                runs[name].take(step, content)
                runs[name].tables += [key for key in content if key == "results"]
    return list(runs.values())


def stub(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Put a `trackio` of our own where processes find it: this text, over one that does nothing."""
    folder.mkdir(exist_ok=True)
    sound = """
import os
from pathlib import Path
class Run:
    def log(self, metrics, step=None):
        with Path("stub.txt").open("a") as file:
            print(step, sorted(metrics), file=file)
def finish():
    pass
def init(**settings):
    return Run()
def Table(**cells):
    return cells
"""
    (folder / "trackio.py").write_text(sound + text, encoding="utf-8")
    others = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), others])))
    monkeypatch.syspath_prepend(str(folder))
