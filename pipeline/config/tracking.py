"""Trackers that runs are shown in (wandb, mlflow, trackio): their settings, what must be installed.

None of it is part of a stage's identity, and none of it is a secret: keys and passwords stay where
the libraries look for them.
"""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from pretrain.config.base import Section, left_out

LOGIN = re.compile(r"//[^/\s]*@")  # of a user, in a URL
Word = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]


class _Shown(Section):
    model_config = ConfigDict(json_schema_extra=left_out("where results are shown besides"))


class WandbTracking(_Shown):
    """Weights & Biases; who you are is its own `wandb login`, or `WANDB_API_KEY`."""

    project: Word | None = None
    """of the runs; the pipeline's name unless given"""
    entity: Word | None = None
    """user or team; the account's default unless given"""
    mode: Literal["online", "offline"] | None = None
    """`offline` writes below the pipeline's folder, for `wandb sync`; as `WANDB_MODE` says, else
    `online`, unless given"""


class MlflowTracking(_Shown):
    """MLflow; who you are is its own `MLFLOW_TRACKING_USERNAME` and `_PASSWORD`, or `_TOKEN`."""

    experiment: Word | None = None
    """of the runs; the pipeline's name unless given"""
    tracking_uri: Word | None = None
    """a server, a database or a folder; as `MLFLOW_TRACKING_URI` says, else `mlflow.db` in the
    pipeline's folder, unless given"""

    @model_validator(mode="after")
    def _without_login(self) -> Self:  # of the section, since a fault of the key would show it
        if LOGIN.search(self.tracking_uri or ""):
            raise ValueError(
                "tracking_uri holds a user or a password, which would stand in run folders; give "
                "them in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return self


class TrackioTracking(_Shown):
    """Trackio; its database is on this machine, where its own `TRACKIO_DIR` says."""

    project: Word | None = None
    """of the runs; the pipeline's name unless given"""
    space_id: Word | None = None
    """a Hugging Face Space to send them to; this machine alone unless given"""


class TrackingConfig(_Shown):
    """Trackers that are named are on; `{}` has the defaults of one."""

    wandb: WandbTracking | None = None
    """Weights & Biases"""
    mlflow: MlflowTracking | None = None
    """MLflow"""
    trackio: TrackioTracking | None = None
    """Trackio"""

    @field_validator("*", mode="before")
    @classmethod
    def _on_or_left_out(cls, value: Any) -> Any:
        if not isinstance(value, dict | Section):
            raise ValueError("wanted its settings, {} for the defaults; leave it out to switch off")
        return value

    def trackers(self, project: str) -> dict[str, dict[str, Any]]:
        """Return the settings of each tracker that is on; `project` is where they name none."""
        on = {name: getattr(self, name) for name in type(self).model_fields}
        settings = {name: each.model_dump() for name, each in on.items() if each is not None}
        for each in settings.values():
            key = next(iter(each))  # whatever the tracker calls a project comes first
            each[key] = each[key] or project
        return settings

    def faults(self) -> list[str]:
        """Return a line for each tracker that is on and whose library is not installed."""
        uri = self.mlflow.tracking_uri if self.mlflow else None
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:"
        database = ["sqlalchemy", "alembic"] if uri.startswith("sqlite:") else []
        needs = {"wandb": ["wandb"], "mlflow": ["mlflow", *database], "trackio": ["trackio"]}
        return [
            f"tracking.{name}: {module} is not installed; pip install -e '.[{name}]', or take "
            f"{name} out of tracking"
            for name in self.trackers("")
            for module in needs[name]
            if not _is_installed(module)
        ]


def _is_installed(module: str) -> bool:
    """Return whether a package is there; a folder `wandb` of runs is none."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None
