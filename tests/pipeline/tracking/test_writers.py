"""Each library writes to its own local store, and its own reader says what is there."""

import doctest
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.tracking import TrackingConfig
from pipeline.tracking import writers
from pipeline.tracking.writers import WRITERS, TrackedRun, cells
from tests.pipeline.tracking.stores import Shown, need, shown_in

CODE = """
import json, sys
from pathlib import Path
from pipeline.tracking.writers import WRITERS, TrackedRun
tracker, run, run_id, rows, status, summary = json.loads(sys.stdin.read())
run = TrackedRun(**run)
writer, step = WRITERS[tracker](run, run_id), 0
for step, metrics in rows:
    writer.log(metrics, step)
if run.table:
    writer.show(Path(run.table), step := step + 1)
writer.finish(status, summary, step)
print(writer.run_id)
"""
CONFIG: dict[str, Any] = {"loss": {"name": "w-mse", "eps": 0.1}, "batch_size": 8}
STORES = ["wandb", "mlflow folder", "mlflow database", "trackio"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings_of(store: str, folder: Path) -> dict[str, Any]:
    """The settings of a store's tracker; skips where it is not installed."""
    tracker, _, kind = store.partition(" ")
    need(tracker)
    if kind == "database":
        need_database()
    section = {"tracking_uri": str(folder / "mlruns")} if kind == "folder" else {}
    config = TrackingConfig.model_validate({tracker: section})
    return config.trackers("plan")[tracker]


def write(tracker: str, run: TrackedRun, *rest: Any) -> str:
    """Open, write and end a run in a process of its own, as the program does; return its id."""
    text = json.dumps([tracker, asdict(run), *rest])
    child = subprocess.run(
        [sys.executable, "-c", CODE], input=text, text=True, check=True, stdout=subprocess.PIPE
    )
    return child.stdout.splitlines()[-1]


def need_database() -> None:
    pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed: no database for mlflow")


@pytest.mark.parametrize("store", STORES)
def test_a_run_that_is_opened_again_goes_on_and_ends_with_table_and_results(
    store: str, folder: Path
) -> None:
    tracker, settings = store.partition(" ")[0], settings_of(store, folder)
    table = folder / "results.csv"
    table.write_text("backbone,seed,bbox/AP\nmine,0,1.5\nmine,1,\n", encoding="utf-8")
    labels = {"backbone": "mine", "task": "voc", "seed": 1}
    run = TrackedRun(settings, str(folder), "finetune/mine", "finetune", labels, CONFIG)
    run_id = write(tracker, run, None, [(1, {"loss": 3.0}), (2, {"loss": 2.0})], "interrupted", {})
    final = {"final/bbox/AP": 12.5, "final/bbox/AP-a b's": 1.0}
    run = replace(run, table=str(table))
    again = write(tracker, run, run_id, [(4, {"loss": 1.0, "bbox/AP": 12.0})], "finished", final)
    (shown,) = shown_in(tracker, folder)
    assert (shown.project, shown.name, shown.run_id) == ("plan", "finetune/mine", run_id)
    assert (shown.status, shown.group, again) == ("finished", "mine/voc", run_id)
    assert shown.points["loss"] == [(1, 3.0), (2, 2.0), (4, 1.0)]
    assert shown.points["bbox/AP"] == [(4, 12.0)]
    assert [value for _, value in shown.points["final/bbox/AP"]] == [12.5]
    assert config_of(shown) == ("w-mse", "8") and len(shown.tables) == 1


def config_of(shown: Shown) -> tuple[str, str]:
    loss = shown.config.get("loss")
    name = loss["name"] if isinstance(loss, dict) else shown.config["loss.name"]
    return str(name), str(shown.config["batch_size"])


def test_cells_are_numbers_nothing_or_text(tmp_path: Path) -> None:
    table = tmp_path / "results.csv"
    table.write_text('a,b\n1.5,"x, y"\n,voc\n', encoding="utf-8")
    assert cells(table) == (["a", "b"], [[1.5, "x, y"], [None, "voc"]])
    assert doctest.testmod(writers) == (0, 1)


def test_a_store_is_that_of_the_settings_then_of_the_environment_then_beside_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uri(value: str | None) -> str:
        run = TrackedRun({"tracking_uri": value}, str(tmp_path), "", "", {}, {})
        return writers.mlflow_uri(run)

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://host")
    assert (uri(None), uri("mlruns")) == ("https://host", "mlruns")


def test_every_tracker_of_the_config_has_a_writer() -> None:
    assert list(WRITERS) == list(TrackingConfig.model_fields)
