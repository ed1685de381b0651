"""`tracking:` of a config: what it switches on, what is refused, what it does not change."""

import sys
from pathlib import Path

import pytest

from pipeline.commands.main import execute
from pipeline.config import tracking
from pipeline.config.tracking import TrackingConfig
from pipeline.plan.build import load_plan
from tests.pipeline.local_runs import CONFIG, small_plan


def refusal(override: str) -> str:
    with pytest.raises(ValueError, match="tracking") as error:
        load_plan(CONFIG, ["seeds=[0]", override])
    return str(error.value)


def test_a_tracker_that_is_named_is_on_and_takes_the_pipelines_name() -> None:
    config = TrackingConfig.model_validate({"wandb": {}, "mlflow": {"experiment": "mine"}})
    assert config.trackers("plan") == {
        "wandb": {"project": "plan", "entity": None, "mode": None},
        "mlflow": {"experiment": "mine", "tracking_uri": None},
    }
    assert TrackingConfig().trackers("plan") == {}
    assert TrackingConfig.model_validate({"trackio": {}}).trackers("plan") == {
        "trackio": {"project": "plan", "space_id": None}
    }


def test_no_signature_depends_on_trackers(project: Path) -> None:
    plain = small_plan()
    tracked = small_plan(["seeds=[0]", "tracking={wandb: {project: mine, mode: offline}}"])
    assert tracked.config.tracking.wandb is not None
    assert [stage.signature for stage in tracked.stages] == [
        stage.signature for stage in plain.stages
    ]


@pytest.mark.parametrize("value", ["null", "true", "offline"])
def test_a_tracker_without_settings_is_neither_on_nor_off(project: Path, value: str) -> None:
    assert "tracking.wandb: wanted its settings, {} for" in refusal(f"tracking={{wandb: {value}}}")


def test_secrets_have_no_place_in_a_config_and_are_not_repeated(project: Path) -> None:
    text = refusal("tracking={wandb: {api_key: hush-hush}}")
    assert "unknown key 'api_key'" in text and "hush" not in text
    text = refusal("tracking={mlflow: {tracking_uri: 'https://me:hush-hush@host/'}}")
    assert "MLFLOW_TRACKING_PASSWORD" in text and "hush" not in text


def test_a_tracker_that_is_not_installed_is_refused_in_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "_is_installed", lambda module: module != "trackio")
    for command in ("plan", "run"):
        overrides = ["seeds=[0]", "tracking={trackio: {}, wandb: {}}"]
        assert execute(command, CONFIG, overrides) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "tracking.trackio: trackio is not installed; pip install -e '.[trackio]'" in line
    assert not Path("runs").exists()
    assert load_plan(CONFIG, overrides, recorded=True)  # what is done is shown all the same


def test_a_database_needs_a_package_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_is_installed", lambda module: module == "mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def faults(uri: str | None) -> list[str]:
        return TrackingConfig.model_validate({"mlflow": {"tracking_uri": uri}}).faults()

    assert [line.split(" is")[0] for line in faults(None)] == [
        "tracking.mlflow: sqlalchemy",
        "tracking.mlflow: alembic",
    ]
    assert faults(None) == faults("sqlite:///x.db") and faults("https://host") == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    assert faults(None) == []


def test_a_folder_of_a_librarys_name_is_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trackio_runs").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert not tracking._is_installed("trackio_runs")
    assert not tracking._is_installed("no_such_module") and tracking._is_installed("json")
